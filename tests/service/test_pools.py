"""Pools of others behind the gateway: a real one over TLS with a key, and those that are hostile, wrong or gone."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.service.conftest import KEY, SCRIPT, start_api_server, start_model_server
from tests.service.mounted import MountedSecret
from tests.service.neighbours import HEADERS, Behaviour, Fleet, Request, answers, ask, breaks_off
from tests.service.processes import Service, free_port, refused
from tests.service.test_gateway import metric
from tests.service.test_neighbours import http, sends, until

POOL_KEY = "sk-of-the-pool-0123456789abcdef"
ROUTE: dict[str, object] = {"pool": "cloud", "model": "theirs", "context_length": 2048, "session_header": "x-their-session"}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path).running() as fleet:
        yield fleet


def keys(work: Path, key: str = POOL_KEY) -> str:
    path = work / "pool-keys"
    (fresh := path.with_suffix(".new")).write_text(json.dumps({"cloud": key}))
    fresh.replace(path)
    return str(path)


@contextmanager
def before(fleet: Fleet, *behaviours: Behaviour, ready: str = "/health", **env: str) -> Iterator[Service]:
    """A gateway before a pool that is one server of a made-up fleet, over HTTP."""
    fleet.add(*behaviours)
    host = next(iter(fleet.servers))
    route = ROUTE | {"url": f"http://{host}:{fleet.port}/base/v1"}
    with fleet.gateway(ready, route, None, POOL_KEYS_FILE=keys(fleet.work), **env) as api:
        yield api


def asked(fleet: Fleet) -> list[Request]:
    """What the pool was asked, but for looks whether it answers."""
    return [request for server in fleet.servers.values() for request in server.seen if not request.path.endswith("/models")]


def says_nothing_of_it(api: Service, fleet: Fleet, *texts: str) -> None:
    for secret in (POOL_KEY, "127.0.0.2", str(fleet.port)):
        assert not [text for text in texts if secret in text], texts
    assert POOL_KEY not in api.log.read_text()


class TestARealPool:
    """A gateway of ours before a model server, over TLS with a key: whoever asks it has OpenAI's API, a certificate and a refusal."""

    @pytest.fixture
    def pool(self, store: Path, tmp_path: Path) -> Iterator[Service]:
        with ExitStack() as stack:
            (work := tmp_path / "theirs").mkdir()
            model = start_model_server(stack, store, work, "tiny:1")
            (work / "keys").write_text(POOL_KEY)
            secret = MountedSecret(work / "tls")
            yield start_api_server(stack, work, {"theirs": {"url": model.url, "model": "tiny:1"}}, TLS_DIR=str(secret.directory))

    @contextmanager
    def gateway(self, pool: Service, work: Path, key: str = POOL_KEY, ca: str | None = None, **route: object) -> Iterator[Service]:
        certificates = (work / "theirs" / "tls" / "ca.crt").read_text() if ca is None else ca
        with ExitStack() as stack:
            routes = {"a": {**ROUTE, "url": f"{pool.url}/v1", "ca": certificates, **route}}
            yield start_api_server(stack, work, routes, "/health", POOL_KEYS_FILE=keys(work, key))

    def test_it_is_asked_as_our_own_are(self, pool: Service, tmp_path: Path) -> None:
        with self.gateway(pool, tmp_path) as api, openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0) as client:
            api.wait_for("/ready")
            answer = client.chat.completions.create(model="a", messages=[{"role": "user", "content": "Say it."}], max_tokens=64)
            assert answer.choices[0].message.content == SCRIPT
            chunks = list(
                client.chat.completions.create(
                    model="a",
                    messages=[{"role": "user", "content": "Say it."}],
                    stream=True,
                    stream_options={"include_usage": True},
                    max_tokens=64,
                )
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SCRIPT
            assert chunks[-1].usage is not None
            assert answer.usage is not None
            assert metric(api, "api_server_completion_tokens_total", model="a") == 2 * answer.usage.completion_tokens
            (entry,) = httpx.get(f"{api.url}/v1/models", headers=HEADERS, timeout=10).json()["data"]
            assert (entry["id"], entry["context_length"]) == ("a", 2048)
            (model,) = httpx.get(f"{api.url}/fleet", headers=HEADERS, timeout=10).json()["models"]
            assert [replica["ready"] for replica in model["replicas"]] == [True]
            assert pool.url not in json.dumps(model)

    def test_a_prompt_that_is_too_long_is_refused_in_words_that_agents_know(self, pool: Service, tmp_path: Path) -> None:
        with self.gateway(pool, tmp_path) as api:
            for words in (3000, 30_000):
                answer = ask(api, messages=[{"role": "user", "content": "word " * words}])
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
                assert "maximum context length is 2048 tokens" in error["message"]
            # The longer one needed nobody to count.
            assert metric(pool, "api_server_requests_total", model="theirs", status="400") == 1

    def test_a_wrong_key_is_the_gateways_trouble_until_another_one_is_mounted(self, pool: Service, tmp_path: Path) -> None:
        with self.gateway(pool, tmp_path, key="sk-wrong-0123456789abcdef") as api:
            api.wait_for("/ready", 503)
            answer = ask(api)
            assert answer.status_code == 502
            assert "status 401" in answer.text
            assert "sk-wrong" not in answer.text + api.log.read_text()
            keys(tmp_path)
            until(lambda: ask(api).status_code == 200)
            api.wait_for("/ready")

    @pytest.mark.parametrize(("ca", "port"), [("", 0), (None, 1)], ids=["unknown authority", "nobody there"])
    def test_a_pool_that_is_not_who_it_should_be_gets_no_key(self, pool: Service, tmp_path: Path, ca: str | None, port: int) -> None:
        url = {"url": f"https://127.0.0.1:{free_port()}/v1"} if port else {}
        with self.gateway(pool, tmp_path, ca=ca, **url) as api:
            api.wait_for("/ready", 503)
            answer = ask(api)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_upstream")
            assert "127.0.0.1" not in answer.text
            assert metric(pool, "api_server_requests_total", model="theirs", status="200") == 0


class TestWhatAPoolSees:
    def test_a_request_with_its_key_and_a_session_of_ours(self, fleet: Fleet) -> None:
        with before(fleet, answers, ready="/ready") as api:
            sent = HEADERS | {"x-session-id": "mine", "x-api-version": "1", "traceparent": "00-1", "cookie": "a=b"}
            for user in ("mine", "mine", "other"):
                body = {"model": "a", "messages": [{"role": "user", "content": user}]}
                httpx.post(
                    f"{api.url}/v1/chat/completions", json=body, headers=sent | {"x-session-id": user}, timeout=30
                ).raise_for_status()
            first, second, third = asked(fleet)
            assert (first.path, first.body["model"]) == ("/base/v1/chat/completions", "theirs")
            assert first.headers["authorization"] == f"Bearer {POOL_KEY}"
            assert first.headers["traceparent"] == "00-1"
            assert not {"cookie", "x-session-id", "x-api-version", "x-api-key"} & first.headers.keys()
            assert first.headers["x-their-session"] == second.headers["x-their-session"] != third.headers["x-their-session"]
            assert "mine" not in first.headers["x-their-session"]
            looks = [request for server in fleet.servers.values() for request in server.seen if request.path == "/base/v1/models"]
            assert looks[0].headers["authorization"] == f"Bearer {POOL_KEY}"
            assert KEY not in json.dumps([request.headers for request in (first, second, third, *looks)])


def refusal(status: str, message: str = f"key {POOL_KEY} at http://127.0.0.2/base/v1 is bad", **error: object) -> Behaviour:
    return sends(http(status, json.dumps({"error": {"message": message, **error}}).encode(), "Retry-After: 7"))


async def hangs(request: Request) -> None:
    if request.path.endswith("/models"):
        await request.answer()
    else:
        await asyncio.sleep(60)


async def never_ends(request: Request) -> None:
    """2 GiB of one answer; the client leaves before."""
    await request.head("200 OK", "application/json", f"Content-Length: {2**31}")
    for _ in range(2**31 // 2**20):
        await request.say(b" " * 2**20)


class TestHostilePools:
    @pytest.mark.parametrize(
        ("behaviour", "status"),
        [
            (refusal("401 Unauthorized"), 502),
            (refusal("402 Payment Required"), 502),
            (refusal("403 Forbidden"), 502),
            (refusal("404 Not Found"), 502),
            (refusal("418 I'm a teapot"), 418),
            (refusal("422 Unprocessable Entity"), 422),
            (refusal("429 Too Many Requests"), 429),
            (refusal("500 Internal Server Error"), 502),
            (refusal("503 Service Unavailable"), 503),
            (refusal("400 Bad Request", "This model's maximum context length is 99 tokens"), 400),
            (sends(http("307 Temporary Redirect", b"{}", "Location: http://127.0.0.2:1/")), 502),
            (sends(http("200 OK", b"<html>", kind="text/html")), 502),
            (sends(http("200 OK", b"{}", "Content-Encoding: gzip")), 502),
            (sends(http("400 Bad Request", b"x" * 10**6)), 400),
            (sends(b"no HTTP\r\n\r\n"), 502),
            (breaks_off, 502),
        ],
    )
    def test_its_troubles_come_in_the_clients_shape_and_name_nobody(self, fleet: Fleet, behaviour: Behaviour, status: int) -> None:
        with before(fleet, behaviour) as api:
            answer, streamed = ask(api), ask(api, stream=True)
            anthropic = ask(api, "/v1/messages", max_tokens=8)
            assert (answer.status_code, streamed.status_code) == (status, status), answer.text
            assert isinstance(answer.json()["error"]["message"], str)
            assert anthropic.json()["type"] == "error"
            says_nothing_of_it(api, fleet, answer.text, streamed.text, anthropic.text)
            assert len(asked(fleet)) <= 3, "each request goes to one server"

    def test_a_redirect_is_not_followed(self, fleet: Fleet) -> None:
        fleet.add(answers, answers)
        target = f"http://127.0.0.3:{fleet.port}/v1/chat/completions"
        fleet.servers["127.0.0.2"].behaviour = sends(http("307 Temporary Redirect", b"", f"Location: {target}"))
        with before(fleet) as api:
            assert ask(api).status_code == 502
            assert fleet.servers["127.0.0.3"].seen == []

    def test_one_that_hangs_is_given_up_and_streams_show_life(self, fleet: Fleet) -> None:
        with before(fleet, hangs, ready="/ready", REQUEST_TIMEOUT_S="3", SILENCE_S="1") as api:
            assert ask(api).status_code == 502
            streamed = ask(api, stream=True)
            assert (streamed.status_code, streamed.text.startswith(": working")) == (200, True)
            assert "upstream_error" in streamed.text
            assert "[DONE]" not in streamed.text

    def test_an_answer_without_end_takes_no_memory_and_ends_with_its_client(self, fleet: Fleet) -> None:
        with before(fleet, never_ends) as api:
            began = memory(api)
            body = {"model": "a", "messages": [{"role": "user", "content": "?"}]}
            with httpx.stream("POST", f"{api.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=30) as response:
                read = 0
                for chunk in response.iter_raw():
                    read += len(chunk)
                    if read > 200 * 2**20:
                        break
            assert memory(api) - began < 60 * 2**20
            until(lambda: metric_in_flight(api) == 0)

    def test_one_that_comes_back_is_asked_again(self, fleet: Fleet) -> None:
        with before(fleet, refusal("500 Internal Server Error")) as api:
            for _ in range(6):
                assert ask(api).status_code in (502, 503)
            fleet.servers["127.0.0.2"].behaviour = answers
            until(lambda: ask(api).status_code == 200)

    def test_a_name_that_leads_to_the_machine_itself_is_not_asked(self, fleet: Fleet) -> None:
        fleet.look_up("169.254.169.254")
        route = ROUTE | {"url": f"http://fleet.test:{fleet.port}/v1"}
        with fleet.gateway("/health", route, POOL_KEYS_FILE=keys(fleet.work)) as api:
            began = time.monotonic()
            assert ask(api).status_code == 503
            assert time.monotonic() - began < 2, "nobody tried to connect"


def memory(service: Service) -> int:
    text = Path(f"/proc/{service.process.pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")))


def metric_in_flight(service: Service) -> float:
    text = httpx.get(f"{service.metrics_url}/metrics", timeout=10).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("api_server_in_flight_requests{"))


@pytest.mark.parametrize(
    ("route", "want"),
    [
        ({"url": "http://169.254.169.254/v1"}, "an address of somebody else, and none that serves the machine itself"),
        ({"url": "http://[fe80::1]/v1"}, "an address of somebody else"),
        ({"url": "http://[::ffff:169.254.169.254]/v1"}, "an address of somebody else"),
        ({"url": "http://100.100.100.200/v1"}, "an address of somebody else"),
        ({"url": "https://user:hunter2@models.example.com/v1"}, "http(s)://HOST[:PORT][/PATH]"),
        ({"url": "https://models.example.com/v1?key=hunter2"}, "http(s)://HOST[:PORT][/PATH]"),
        ({"url": "ftp://models.example.com"}, "http(s)://HOST[:PORT][/PATH]"),
        ({"pool": "", "url": "https://models.example.com/v1"}, "http://HOST:PORT"),
    ],
)
def test_urls_that_no_pool_can_have_are_one_clear_line(tmp_path: Path, route: dict[str, Any], want: str) -> None:
    (tmp_path / "keys").write_text(KEY)
    routes = json.dumps({"a": ROUTE | route})
    status, errors = refused("api_server", {"API_SERVER_KEYS_FILE": str(tmp_path / "keys"), "API_SERVER_ROUTES": routes})
    assert status == 2
    assert "API_SERVER_ROUTES.a.url: got a wrong value, want " in errors
    assert want in errors
    assert "hunter2" not in errors


@pytest.mark.parametrize("content", [None, "", "[]", '{"cloud": 1}', '{"cloud": "two words"}'])
def test_a_file_without_keys_is_one_clear_line(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "keys").write_text(KEY)
    if content is not None:
        (tmp_path / "pool-keys").write_text(content)
    routes = json.dumps({"a": ROUTE | {"url": "https://models.example.com/v1"}})
    env = {"KEYS_FILE": str(tmp_path / "keys"), "ROUTES": routes, "POOL_KEYS_FILE": str(tmp_path / "pool-keys")}
    status, errors = refused("api_server", {f"API_SERVER_{name}": value for name, value in env.items()})
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: API_SERVER_POOL_KEYS_FILE: got no keys in ")
    assert "Traceback" not in errors
