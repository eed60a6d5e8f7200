"""What /fleet says of a fleet, and what the page's files are made of and shipped with."""

import json
import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from api_server import fleet, page
from api_server.address import Address
from api_server.bindings import Bindings
from api_server.keys import Grant, Key
from api_server.metrics import Metrics
from api_server.peers import Peers
from api_server.sessions import Turn
from api_server.settings import Route
from api_server.spending import Spent, Usage
from api_server.upstreams import Upstream
from images import embedded
from infra.program.settings.capacity import Capacity
from infra.program.settings.section import Speed
from modelfleet import wheel

PAGE = Path(page.__file__).parent
FILES = sorted(path.name for path in PAGE.iterdir() if path.is_file())
DIGEST = "a" * 64
OLLAMA = Route(url="http://ollama:11434", model="m:1", engine="ollama", context_length=1000, slots=2, cached_tokens=5500, digest=DIGEST)
SECTIONS = re.split("^## ", (PAGE / "clients.md").read_text(), flags=re.M)[1:]
GUIDES = {
    title: (kind, lines)
    for section in SECTIONS
    for title, kind, lines in re.findall(r"\A(.+?)\n.*?```(\w+)\n(.*?)\n```\s*\Z", section, re.S)
}


def one(digest: str = DIGEST, loaded: bool = True) -> tuple[Upstream, Address]:
    """A server of Ollama that has the model in this version."""
    entry = {"m:1": {"name": "m:1", "digest": digest}}
    address = Address("10.0.0.1", 11434, store=entry, loaded=entry if loaded else {})
    return Upstream(OLLAMA.url, 4, "ollama", addresses={address.host: address}), address


def out(_: Upstream, address: Address) -> None:
    address.eject()


def away(_: Upstream, address: Address) -> None:
    address.answers = False


def back(_: Upstream, address: Address) -> None:
    address.eject()
    address.out_until = 0


def most_out(upstream: Upstream, address: Address) -> None:
    address.eject()
    upstream.addresses = {address.host: address}


def beside_others(upstream: Upstream, address: Address) -> None:
    address.eject()
    for number in (2, 3):
        upstream.addresses[f"10.0.0.{number}"] = Address(f"10.0.0.{number}", 11434)


@pytest.mark.parametrize(
    ("change", "ready", "reason"),
    [
        (lambda *_: None, True, ""),
        (away, False, "it takes no connection"),
        (beside_others, False, "it failed or was silent, and gets no requests for 10 s"),
        # All of them are out, so all are asked.
        (most_out, True, "it failed or was silent, and gets few requests at once until it answers"),
        (back, True, "it failed or was silent, and gets few requests at once until it answers"),
    ],
)
def test_a_replica_is_ready_or_says_why_not(change: Callable[[Upstream, Address], None], ready: bool, reason: str) -> None:
    upstream, address = one()
    change(upstream, address)
    found = fleet.replica(address, upstream, "m", OLLAMA, Bindings())
    assert (found.ready, found.reason) == (ready, reason)


@pytest.mark.parametrize(
    ("digest", "loaded", "ready", "reason"),
    [
        ("b" * 64, True, False, "it has another version of the model"),
        (DIGEST, False, True, "the model is not in its memory, so the next request loads it"),
    ],
)
def test_a_replica_says_what_it_has(digest: str, loaded: bool, ready: bool, reason: str) -> None:
    upstream, address = one(digest, loaded)
    found = fleet.replica(address, upstream, "m", OLLAMA, Bindings())
    assert (found.ready, found.reason) == (ready, reason)
    address.store = {}
    assert fleet.replica(address, upstream, "m", OLLAMA, Bindings()).reason == "it does not have the model"


def test_a_replica_has_the_places_that_this_gateway_may_give() -> None:
    upstream, address = one()
    places = lambda: fleet.replica(address, upstream, "m", OLLAMA, Bindings()).places  # noqa: E731
    assert places() == 4
    address.part = 1
    assert places() == 1, "another gateway uses the others"
    address.part, address.places = 3, 2
    assert places() == 2, "it was out, and is tried with few"
    for at_work in (1, 2, 3):
        address.in_flight = at_work
        assert upstream.is_full(address) == (at_work >= places())


def test_a_replica_says_how_many_conversations_it_holds_and_forgets_those_that_ended() -> None:
    now = [0.0]
    table = Bindings(lease_s=60, clock=lambda: now[0])
    upstream, address = one()
    for number in range(3):
        now[0] += 30
        name = b"%d" % number
        table.bind(Turn((name,), name, 40_000, owner=b"somebody", goes_on=True), address.host, None)
    assert (fleet.replica(address, upstream, "m", OLLAMA, table).conversations, table.bound) == (3, {address.host: 3})
    assert fleet.replica(address, upstream, "m", OLLAMA, table).tokens == 40_000
    table.expire()
    assert fleet.replica(address, upstream, "m", OLLAMA, table).conversations == 3
    now[0] += 45
    table.expire()
    assert table.bound == {address.host: 1}
    now[0] += 100
    table.expire()
    assert (table.bound, table.held) == ({}, {})


def test_as_many_agents_stay_warm_as_slots_and_cache_have_room_for() -> None:
    assert fleet.warm(OLLAMA, 3, 1000) == 3 * (1 + 5)
    assert fleet.warm(OLLAMA, 3, 100.5) == 3 * (1 + 54)
    assert fleet.warm(OLLAMA, 0, 1000) == 0
    assert fleet.warm(OLLAMA, 3, 6000) == 3 * 2, "in slots"
    assert fleet.warm(OLLAMA, 3, 0) is None, "how long they are is not known"
    assert fleet.warm(OLLAMA.model_copy(update={"slots": 0}), 3, 1000) is None, "what a server keeps is not known"


@given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**12), st.booleans())
def test_the_stacks_outputs_count_them_alike(servers: int, slots: int, length: int, each: int, cache: int, one: bool) -> None:
    found = Capacity(servers, slots, context_length=length, kv_bytes_per_token=each, prompt_cache=cache, one_memory=one)
    route = OLLAMA.model_copy(update={"slots": found.in_slots, "cached_tokens": found.cached_tokens})
    assert fleet.warm(route, servers, length) == found.conversations


@given(st.integers(0, 9), st.integers(1, 64), st.integers(512, 10**6), st.floats(1, 10**6), st.floats(1, 10**6))
def test_the_stacks_outputs_count_turns_alike(servers: int, slots: int, length: int, read: float, write: float) -> None:
    speed = Speed(read=read, write=write)
    found = Capacity(servers=servers, slots=slots, context_length=length, kv_bytes_per_token=1, prompt_cache=0, speed=speed)
    route = OLLAMA.model_copy(update={"turns_per_hour": found.turns_per_hour_each})
    assert fleet.turns(route, servers) == found.turns_per_minute
    assert fleet.turns(OLLAMA, servers) is None, "not measured"


def test_the_use_of_a_key_has_nothing_of_another() -> None:
    metrics = Metrics([], {}, lambda: 0, Peers(b"me", 1))
    for key, model, status in (("alice", "m", 200), ("alice", "m", 499), ("alice", "unknown", 429), ("bob", "n", 200)):
        metrics.asked(key, model, status)
    metrics.spent("alice", "m", Spent(100, 70, 9))
    metrics.spent("bob", "m", Spent(5000, 0, 1))
    metrics.spent("bob", "m", Spent(), 3)
    assert metrics.used_by("alice") == [
        Usage(model="m", requests=2, prompt_tokens=100, cached_tokens=70, completion_tokens=9),
        Usage(model="unknown", requests=1),
    ]
    assert [(each.model, each.requests, each.prompt_tokens) for each in metrics.used_by("bob")] == [("m", 0, 5000), ("n", 1, 0)]
    assert metrics.used_by("carol") == []


def test_a_key_is_told_what_it_may_do_and_not_its_hash() -> None:
    grant = Grant.model_validate({"hash": "c" * 64, "owner": "Carol", "expires": "2027-01-31", "models": ["b", "a"], "tokensPerMinute": 9})
    found = fleet.own(Key("carol", grant), [])
    assert (found.name, found.owner, found.expires, found.models) == ("carol", "Carol", "2027-02-01T00:00:00+00:00", ["a", "b"])
    assert (found.limits.requests_per_minute, found.limits.tokens_per_minute, found.limits.concurrency) == (None, 9, None)
    assert "c" * 64 not in repr(found)


def test_the_lines_for_each_client_are_whole() -> None:
    assert set(GUIDES) == {"The key", "OpenHands", "Claude Code", "Codex", "Cline", "Aider", "opencode", "Continue", "curl"}
    assert len(SECTIONS) == len(GUIDES)
    assert [title for title, (_, lines) in GUIDES.items() if "{model}" not in lines or "{address}" not in lines] == ["The key"]
    assert [title for title, (_, lines) in GUIDES.items() if "MODELFLEET_API_KEY" not in lines] == ["Cline"]


@pytest.mark.parametrize("title", GUIDES)
@pytest.mark.parametrize("context", ["4096", ""])
def test_the_lines_are_in_the_language_that_they_are_said_to_be(title: str, context: str) -> None:
    kind, lines = GUIDES[title]
    # As the page does where the context is not known.
    kept = [line for line in lines.splitlines() if context or "{context}" not in line]
    text = "\n".join(kept).replace("{address}", "http://gateway:8000").replace("{model}", "hf.co/a/b:Q4_K_M").replace("{context}", context)
    match kind:
        case "sh":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)
            for body in re.findall(r"-d '(.*)'", text):
                assert json.loads(body)["model"] == "hf.co/a/b:Q4_K_M"
        case "json":
            provider = json.loads(text)["provider"]["modelfleet"]
            assert provider["options"]["apiKey"] == "{env:MODELFLEET_API_KEY}"
            assert provider["models"] == {"hf.co/a/b:Q4_K_M": {"limit": {"context": 4096, "output": 8192}} if context else {}}
        case "toml":
            assert tomllib.loads(text)["model_providers"]["modelfleet"]["base_url"] == "http://gateway:8000/v1"
        case "yaml":
            (model,) = yaml.safe_load(text)["models"]
            assert model["apiKey"] == "${{ secrets.MODELFLEET_API_KEY }}"
            assert model.get("defaultCompletionOptions") == ({"contextLength": 4096} if context else None)
        case _:
            assert kind == "text"


def test_the_page_makes_no_markup_of_text_and_keeps_no_key() -> None:
    text = (PAGE / "app.js").read_text()
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "localStorage",
        "sessionStorage",
        "cookie",
    ):
        assert word not in text, word
    markup = (PAGE / "index.html").read_text()
    assert re.findall(r"\bon\w+=|\bstyle=|<style|https?://|\bname=\"(?!viewport)", markup) == []
    assert set(re.findall(r"(?:src|href)=\"([^\"]+)\"", markup)) == {"page/icon.svg", "page/style.css", "page/app.js"}
    assert [name for name in FILES if any(len(line) > 140 for line in (PAGE / name).read_text().splitlines())] == ["icon.svg"]


def test_every_file_of_the_page_is_in_the_image_and_in_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "images_cache", lambda: tmp_path)
    with tarfile.open(embedded._package("api_server").path) as layer:
        assert {f"app/api_server/page/{name}" for name in FILES} <= set(layer.getnames())
    with zipfile.ZipFile(wheel.build(tmp_path)) as built:
        assert {f"modelfleet/tree/api_server/page/{name}" for name in FILES} <= set(built.namelist())
    assert len(FILES) >= 5
