"""The gateway's page in a real browser, at a real gateway in front of made-up servers."""

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from playwright.sync_api import Browser

from tests.service import browser as browsers
from tests.service.browser import Tab, tab
from tests.service.neighbours import Fleet, Request, breaks_off
from tests.service.processes import ROOT, Service, free_port

ALICE, BOB, CAROL = "the-key-of-alice-0123", "the-key-of-bob-0123456", "the-key-of-carol-0123"
CODER, WRITER, EMBED = "qwen3-coder:30b", "gpt-oss:20b", "nomic-embed-text:v1.5"
PICTURES = ROOT / "docs" / "pictures"
PICTURE_BYTES = 150_000
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "\"'><script>window.hacked=1</script>",
    "</pre></style><svg onload=window.hacked=1>",
    "javascript:window.hacked=1",
    "${alert(1)} {{7*7}} $(id) `id`",
    "\u202etxet sdrawkcab\u202c\u0000\u2028\n",
    "long-" + "x" * 400,
)
"""Names of models, of aliases, and of what a model can do."""


def grant(key: str, **fields: Any) -> dict[str, Any]:
    return {"hash": hashlib.blake2b(key.encode(), digest_size=32).hexdigest(), **fields}


def behaviour(*entries: dict[str, Any]) -> Any:
    """A server with these entries in its list of models. A message `slow` is answered after the test."""

    async def serve(request: Request) -> None:
        if request.path == "/v1/models":
            await request.answer(json.dumps({"data": entries}).encode())
            return
        if request.body["messages"][-1]["content"] == "slow":
            await asyncio.sleep(600)
        size = len(json.dumps(request.body)) // 4
        usage = {"prompt_tokens": size, "completion_tokens": 180, "prompt_tokens_details": {"cached_tokens": size * 3 // 4}}
        await request.answer(json.dumps({"choices": [{"message": {"content": "Hello."}}], "usage": usage}).encode())

    return serve


def ask(gateway: Service, key: str, model: str, *messages: str) -> int:
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(messages)]
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": model, "messages": turns}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=600, trust_env=False).status_code


@contextmanager
def busy(gateway: Service, model: str) -> Iterator[None]:
    """A request that a server works on."""

    def run() -> None:
        with suppress(httpx.HTTPError):  # at the end of the test
            ask(gateway, CAROL, model, "slow")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield


@contextmanager
def running(work: Path) -> Iterator[Service]:
    """A fleet in use: a model on three servers of which one is away, one with an alias and a canary, one of embeddings."""
    fleet = Fleet(work)
    can = ["completion", "tools", "thinking"]
    coder = behaviour({"id": CODER, "context_length": 131072, "capabilities": can})
    others = behaviour(
        {"id": WRITER, "context_length": 65536, "capabilities": [*can, "vision"]},
        {"id": EMBED, "context_length": 8192, "capabilities": ["embedding"]},
    )
    (work / "aliases").write_text(json.dumps({"coder": {"model": CODER, "next": WRITER, "share": 10}, "gpt-5-codex": {"model": WRITER}}))
    everything = [CODER, WRITER, EMBED, "coder", "gpt-5-codex"]
    keys = {
        "alice": grant(ALICE, owner="Alice, search team", expires="2027-01-31", models=everything, tokensPerMinute=400_000, concurrency=8),
        "bob": grant(BOB, models=["gpt-5-codex"], requestsPerMinute=60),
        "carol": grant(CAROL),
    }
    (work / "keys").write_text(json.dumps(keys))
    with fleet.running():
        servers = fleet.add(coder, coder, breaks_off, others, others)
        at = f"127.0.0.5:{fleet.port}"
        fleet.look_up("127.0.0.2", "127.0.0.3", "127.0.0.4")
        fleet.stop(servers[2])
        routes: dict[str, dict[str, object]] = {
            CODER: {"url": f"http://fleet.test:{fleet.port}", "slots": 4, "cached_tokens": 1_000_000},
            WRITER: {"url": f"http://{at}", "slots": 2, "cached_tokens": 400_000, "turns_per_hour": 1234},
            EMBED: {"url": f"http://{at}", "max_in_flight": 8},
        }
        with fleet.gateway(others=routes, ALIASES_FILE=str(work / "aliases"), QUEUE_S="30") as gateway:
            for number in range(9):
                history = [f"Read file {number}. " + "x = 1\n" * (4000 + 800 * number), "It is read."]
                assert ask(gateway, ALICE, CODER, *history, "Go on.") == 200
                assert ask(gateway, BOB, "gpt-5-codex", *history, "Go on.") == 200
            with busy(gateway, CODER), busy(gateway, WRITER):
                yield gateway


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsers.chromium(str(tmp_path_factory.mktemp("home"))) as found:
        yield found


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Service]:
    """A gateway whose models, aliases, abilities and owner have hostile names."""
    fleet = Fleet(tmp_path)
    entries = [{"id": name, "context_length": 4096, "capabilities": ["completion", *HOSTILE]} for name in HOSTILE]
    (tmp_path / "aliases").write_text(json.dumps({f"alias {name}": {"model": name, "next": "a", "share": 5} for name in HOSTILE}))
    (tmp_path / "keys").write_text(json.dumps({"alice": grant(ALICE, owner=HOSTILE[0])}))
    with fleet.running():
        fleet.add(behaviour(*entries))
        routes: dict[str, dict[str, object]] = {name: {"url": f"http://127.0.0.2:{fleet.port}"} for name in HOSTILE}
        with fleet.gateway(others=routes, ALIASES_FILE=str(tmp_path / "aliases")) as found:
            yield found


def in_order(found: Tab) -> None:
    """Nothing ran that should not, and nothing was tried."""
    assert found.complaints == []
    assert found.ask("violations") == []
    assert found.ask("window.hacked") is None


def test_a_wrong_key_is_told_and_can_be_mended(browser: Browser, gateway: Service) -> None:
    with tab(browser, gateway.url) as found:
        assert not found.page.locator("#fleet").is_visible()
        found.enter("no-key-of-anybody-0123")
        found.says("got no valid key")
        assert not found.page.locator("#fleet").is_visible()
        assert found.ask("document.activeElement.id") == "key"
        found.enter("with spaces in it ü")
        found.says("A key has printable characters alone")
        found.enter(ALICE)
        found.says("Asked again every 5 s")
        assert found.ask("violations") == []
        # What the browser itself says of a 401.
        assert [each for each in found.complaints if "401" not in each] == []


def test_a_key_shows_its_models_and_its_use_and_nothing_of_others(browser: Browser, gateway: Service) -> None:
    with tab(browser, gateway.url) as found:
        found.enter(ALICE)
        found.says("Asked again")
        for text in ("Key alice", "Alice, search team", "2 of 3 replicas ready", "not ready: it takes no connection", "131,072 tokens"):
            assert text in found.text, text
        assert "Answers up to 20.6 of their turns a minute." in found.text
        assert found.text.count("turns a minute") == 1, "of the other model it is not known"
        for text in ("thinking", "embeddings", "10 % of the conversations, to gpt-oss:20b", "400,000", "no limit of its own"):
            assert text in found.text, text
        assert found.page.locator("#usage").get_by_role("row", name=CODER).inner_text().split()[:2] == [CODER, "9"]
        assert "bob" not in found.text
        assert "carol" not in found.text
        assert "127.0.0" not in found.page.locator("#models").inner_text()
        in_order(found)
    with tab(browser, gateway.url) as found:
        found.enter(BOB)
        # A tenth of what the key may ask in a minute.
        found.says("Asked again every 10 s")
        assert CODER not in found.page.content()
        assert "your key reaches it by its other names alone" in found.text
        assert found.page.locator("#model option").all_inner_texts() == ["gpt-5-codex"]
        assert found.page.locator("#usage").get_by_role("row", name=WRITER).inner_text().split()[:2] == [WRITER, "9"]
        in_order(found)


def test_lines_to_paste_have_the_address_and_a_model_and_never_the_key(browser: Browser, gateway: Service) -> None:
    with tab(browser, gateway.url) as found:
        found.enter(ALICE)
        found.says("Asked again")
        assert found.page.locator("#model option").all_inner_texts() == [CODER, WRITER, "coder", "gpt-5-codex"]
        found.page.get_by_label("Model", exact=True).select_option("coder")
        lines = {
            each.locator("summary").inner_text(): each.locator("pre").text_content() or "" for each in found.page.locator("details").all()
        }
        assert set(lines) >= {"OpenHands", "Claude Code", "Codex", "Cline", "Aider", "opencode", "Continue", "curl"}
        for name, text in lines.items():
            assert ALICE not in text
            assert "{address}" not in text
            assert "{model}" not in text
            # An alias has the context that both of its models have.
            assert "{context}" not in text
            if name != "The key":
                assert gateway.url in text
                assert "coder" in text
        assert "model_context_window = 65536" in lines["Codex"]
        found.page.get_by_label("Model", exact=True).select_option(WRITER)
        assert "openai/gpt-oss:20b" in (found.page.locator("details pre").nth(1).text_content() or "")
        in_order(found)


def test_hostile_names_are_text_and_nothing_else(browser: Browser, hostile: Service) -> None:
    with tab(browser, hostile.url, width=400) as found:
        found.enter(ALICE)
        found.says("Asked again")
        shown = found.page.locator("body").text_content() or ""
        for name in HOSTILE:
            assert name.replace("\0", "\ufffd") in shown.replace("\0", "\ufffd"), name
        assert found.ask("document.querySelectorAll('main :is(img, script, svg, style, iframe)').length") == 0
        assert found.ask("document.documentElement.scrollWidth") <= 400
        # None of them stands in a line that a shell would run.
        assert found.page.locator("#model option").all_inner_texts() == ["a", HOSTILE[-1]]
        assert "13 names are not offered here" in found.text
        in_order(found)


def test_the_browser_itself_refuses_markup_foreign_scripts_and_foreign_addresses(browser: Browser, gateway: Service) -> None:
    """So a mistake in the page's own script would not be enough."""
    with tab(browser, gateway.url) as found:
        refused = "() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch (error) { return error.name } }"
        assert found.ask(refused) == "TypeError"
        elsewhere = f"() => fetch('http://127.0.0.1:{free_port()}/').then(() => 'sent', () => 'refused')"
        assert found.ask(elsewhere) == "refused"
        inline = """() => {
          const script = document.createElement('script');
          try { script.textContent = 'window.hacked = 1' } catch { script.append('window.hacked = 1') }
          try { document.head.append(script) } catch {}
          return window.hacked ?? null
        }"""
        assert found.ask(inline) is None
        directives = {each.split()[0] for each in found.ask("violations")}
        assert directives >= {"require-trusted-types-for", "connect-src"}
    headers = httpx.get(gateway.url, headers={"Accept": "text/html"}, trust_env=False).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_keyboard_alone_reaches_everything(browser: Browser, gateway: Service) -> None:
    with tab(browser, gateway.url) as found:
        keyboard = found.page.keyboard
        keyboard.press("Tab")
        assert found.ask("document.activeElement.labels[0].textContent") == "Your key"
        keyboard.type(ALICE)
        keyboard.press("Enter")
        found.says("Asked again")
        # Who reads by ear goes on where the new things begin.
        assert found.ask("document.activeElement.id") == "models-title"
        name = "(element => element.ariaLabel || element.labels?.[0]?.textContent || element.textContent.trim())(document.activeElement)"
        focused: list[str] = []
        for _ in range(2):
            # To the end of the page; then from its beginning.
            keyboard.press("Tab")
            while found.ask("document.activeElement !== document.body"):
                focused.append(found.ask(f"() => {name}"))
                assert len(focused) < 100, "no way out"
                ring = found.ask(
                    "(style => [style.outlineStyle, parseFloat(style.outlineWidth)])(getComputedStyle(document.activeElement))"
                )
                assert ring[0] != "none", focused[-1]
                assert ring[1] >= 2, focused[-1]
                if found.ask("document.activeElement.localName === 'summary' && !document.activeElement.parentElement.open"):
                    keyboard.press("Enter")
                keyboard.press("Tab")
        clients = [each.inner_text() for each in found.page.locator("summary").all()]
        assert {"Forget the key", "Model", *clients, *(f"Lines for {each}" for each in clients)} <= set(focused)
        assert {f"Copy the lines for {each}" for each in clients} <= set(focused)
        in_order(found)
        found.page.get_by_role("button", name="Forget the key").focus()
        keyboard.press("Enter")
        assert found.ask("document.activeElement.id") == "key"
        assert not found.page.locator("#fleet").is_visible()


def test_plain_http_is_said_and_lines_can_be_copied_by_hand(browser: Browser, gateway: Service) -> None:
    plain = "whoever is on the way can read the key"
    with tab(browser, gateway.url) as found:
        assert plain not in found.text
    elsewhere = gateway.url.replace("127.0.0.1", browsers.ELSEWHERE)
    with tab(browser, elsewhere) as found:
        assert plain in found.text
        found.enter(ALICE)
        found.says("Asked again")
        found.page.locator("summary", has_text="curl").click()
        assert found.page.get_by_role("button", name="Copy the lines").count() == 0, "browsers give it no clipboard"
        found.page.keyboard.press("Tab")
        chosen = found.ask("getSelection().toString()")
        assert f'"{elsewhere}/v1/chat/completions"' in chosen
        assert chosen.startswith("printf")
        in_order(found)


def test_people_who_hear_the_page_are_told_what_things_are(browser: Browser, gateway: Service) -> None:
    with tab(browser, gateway.url) as found:
        found.enter(ALICE)
        found.says("Asked again")
        tree = found.page.locator("body").aria_snapshot()
        for part in (
            "- banner:",
            "- main:",
            "- status:",
            'heading "Models" [level=2]',
            'table "Replicas of qwen3-coder:30b"',
            "columnheader",
        ):
            assert part in tree, part
        assert found.ask("document.querySelectorAll('th:not([scope])').length") == 0
        assert found.ask("[...document.querySelectorAll('input, select')].every(each => each.labels.length)")


@pytest.mark.parametrize("width", [400, 320])
def test_a_narrow_screen_scrolls_in_one_direction(browser: Browser, gateway: Service, width: int) -> None:
    with tab(browser, gateway.url, width=width) as found:
        assert found.ask("document.documentElement.scrollWidth") <= width
        found.enter(ALICE)
        found.says("Asked again")
        found.ask("document.querySelectorAll('details').forEach(each => { each.open = true })")
        assert found.ask("document.documentElement.scrollWidth") <= width


def test_light_and_dark_differ_and_every_text_can_be_read(browser: Browser, gateway: Service) -> None:
    grounds: set[str] = set()
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        with tab(browser, gateway.url, scheme=scheme) as found:
            seen = found.ask(browsers.CONTRAST)
            found.enter(ALICE)
            found.says("Asked again")
            found.ask("document.querySelectorAll('details').forEach(each => { each.open = true })")
            grounds.add(found.ask("getComputedStyle(document.body).backgroundColor"))
            seen += found.ask(browsers.CONTRAST)
            found.page.get_by_role("button", name="Forget the key").click()
            found.enter("no-key-of-anybody-0123")
            found.says("got no valid key")
            seen += found.ask(browsers.CONTRAST)
            assert len(seen) > 60
            assert [each for each in seen if each[1] < 4.5] == []
    assert len(grounds) == 2


def test_the_key_is_kept_nowhere_and_goes_nowhere_else(browser: Browser, gateway: Service) -> None:
    with tab(browser, gateway.url) as found:
        found.enter(ALICE)
        found.says("Asked again")
        assert ALICE not in found.page.content()
        assert found.page.get_by_label("Your key", exact=True).input_value() == ""
        assert ALICE not in found.page.url
        state = found.page.context.storage_state(indexed_db=True)
        assert state == {"cookies": [], "origins": []}
        assert found.ask("[localStorage.length, sessionStorage.length, document.cookie, history.length]") == [0, 0, "", 2]
        with tab(browser, gateway.url, within=found.page.context) as other:
            assert other.page.get_by_label("Your key", exact=True).is_visible()
            assert not other.page.locator("#fleet").is_visible()
        found.page.reload()
        assert found.page.get_by_label("Your key", exact=True).is_visible()
        assert found.page.get_by_label("Your key", exact=True).input_value() == ""
        assert not found.page.locator("#fleet").is_visible()
        found.page.goto("about:blank")
        found.page.go_back()
        assert found.page.get_by_label("Your key", exact=True).is_visible()
        assert len(found.requests) >= 6
        for request in found.requests:
            if request.url == "about:blank":
                continue
            assert request.url.startswith(f"{gateway.url}/"), request.url
            assert ALICE not in request.url
            carries = request.headers.get("authorization", "")
            assert carries == (f"Bearer {ALICE}" if request.url == f"{gateway.url}/fleet" else "")
            assert not request.headers.get("referer")


def test_it_refreshes_while_it_is_seen_and_says_when_the_gateway_is_away(browser: Browser, tmp_path: Path) -> None:
    with running(tmp_path) as gateway, tab(browser, gateway.url) as found:

        def asked() -> int:
            return sum(request.url.endswith("/fleet") for request in found.requests)

        found.enter(ALICE)
        found.says("Asked again")
        before = asked()
        assert ask(gateway, ALICE, CODER, "Hello.") == 200
        found.page.get_by_role("cell", name="10", exact=True).wait_for(timeout=12_000)
        assert asked() > before
        found.ask(
            "() => { Object.defineProperty(document, 'hidden', { get: () => true, configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')) }"
        )
        before = asked()
        found.page.wait_for_timeout(7000)
        assert asked() == before
        gateway.process.kill()
        gateway.ended()
        found.ask("() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')) }")
        found.says("The gateway does not answer. Asked again every 5 s. What you see is what it said last.")
        assert found.page.get_by_role("heading", name=CODER).is_visible()


def test_pictures(browser: Browser, gateway: Service, tmp_path: Path) -> None:
    """UPDATE_PICTURES=1 writes those of docs/."""
    target = PICTURES if os.environ.get("UPDATE_PICTURES") == "1" else tmp_path
    target.mkdir(exist_ok=True)
    kinds: tuple[tuple[str, int, int, Literal["light", "dark"]], ...] = (
        ("light", 1000, 1000, "light"),
        ("dark", 1000, 1000, "dark"),
        ("narrow", 400, 1100, "light"),
    )
    for name, width, height, scheme in kinds:
        with tab(browser, gateway.url, width, scheme) as found:
            found.enter(ALICE)
            found.says("Asked again")
            found.page.locator("details").nth(1).locator("summary").click()
            found.page.mouse.move(0, 0)
            path = target / f"page-{name}.png"
            found.page.screenshot(path=path, clip={"x": 0, "y": 0, "width": width, "height": height}, full_page=True)
            assert 10_000 < path.stat().st_size <= PICTURE_BYTES


def test_the_pictures_of_the_docs_are_there_and_small() -> None:
    for name in ("light", "dark", "narrow"):
        assert 10_000 < (PICTURES / f"page-{name}.png").stat().st_size <= PICTURE_BYTES
