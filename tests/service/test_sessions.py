"""Agents' conversations stay with the server that holds their prompts: two real engines, and what they say of their caches."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_server import picking
from model_sync import gguf
from tests import tiny_gguf
from tests.service import names
from tests.service.conftest import KEY, SCRIPT, start_api_server, start_model_server
from tests.service.neighbours import Fleet, answers
from tests.service.processes import Service, free_port
from tests.service.test_gateway import metric
from tests.service.test_model_server import metric as of_server

AGENTS = 4
SAVED = ("reused_prompt_tokens_total", "saved_seconds_total", "prompt_tokens_per_second")
CONTEXT = 8192


@contextmanager
def running(
    tmp_path: Path, most: int = 4, *, servers: int = 2, context: int = CONTEXT, cached_tokens: int = 0, **settings: str
) -> Iterator[tuple[Service, list[Service]]]:
    """A gateway before model servers of one model, each with so many requests at once."""
    port = free_port()
    shape = {"PORT": str(port), "PARALLEL": str(min(most, 2)), "CONTEXT_LENGTH": str(context)}
    store = tmp_path / "models"
    gguf.add("tiny:1", tiny_gguf.make(tmp_path / "model.gguf", SCRIPT, context=context), store)
    hosts = [f"127.0.0.{number + 1}" for number in range(servers)]
    with ExitStack() as stack:
        started: list[Service] = []
        for host in hosts:
            (tmp_path / host).mkdir()
            started.append(start_model_server(stack, store, tmp_path / host, "tiny:1", "/ready", None, HOST=host, **shape))
        routes: dict[str, dict[str, object]] = {
            "tiny:1": {
                "url": f"http://{names.FLEET}:{port}",
                "max_in_flight": most,
                "slots": min(most, 2) if cached_tokens else 0,
                "cached_tokens": cached_tokens,
            }
        }
        found = names.Name(tmp_path, *hosts).environment
        yield start_api_server(stack, tmp_path, routes, "/ready", found, 0, **settings), started


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[Service, list[Service]]]:
    with running(tmp_path) as found:
        yield found


def history(agent: int, turns: int) -> list[dict[str, Any]]:
    """Of an agent with a system prompt of its own: where two share most of a prompt, llama.cpp gives both one slot, which forgets the rest."""
    system = {"role": "system", "content": f"{agent} is your number. " * 20}
    return [
        system,
        {"role": "user", "content": "Say it."},
        *[{"role": "assistant", "content": SCRIPT}, {"role": "user", "content": "And again."}] * turns,
    ]


def turns(api: Service, reason: str) -> float:
    return metric(api, "api_server_turns_total", model="tiny:1", reason=reason)


@pytest.mark.parametrize("identified", [True, False], ids=["by their ids", "by their histories"])
def test_conversations_stay_warm_while_their_turns_take_turns(fleet: tuple[Service, list[Service]], identified: bool) -> None:
    api, _ = fleet
    with httpx.Client(base_url=api.url, timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as client:
        shares: list[float] = []
        for turn in range(3):
            for agent in range(AGENTS):
                headers = {"x-litellm-session-id": f"agent-{agent}"} if identified else {}
                body = {"model": "tiny:1", "messages": history(agent, turn), "max_tokens": 64, "temperature": 0}
                answer = client.post("/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                usage = answer.json()["usage"]
                shares += [usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"]] * bool(turn)
    assert (turns(api, "new"), turns(api, "bound"), turns(api, "spilled"), turns(api, "lost")) == (AGENTS, 2 * AGENTS, 0, 0)
    assert min(shares) > 0.8, shares
    cached, reusable = (metric(api, f"api_server_{name}_tokens_total", model="tiny:1", reason="bound") for name in ("cached", "reusable"))
    assert cached >= 0.9 * reusable > 0


def test_servers_save_what_the_gateway_hears_of_and_no_more_time_than_a_cold_turn_takes(fleet: tuple[Service, list[Service]]) -> None:
    api, servers = fleet
    cold_s, cached = 0.0, 0
    with httpx.Client(base_url=api.url, timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for turn in range(3):
            messages = [{"role": "system", "content": "Keep the rule of the house. " * 100}, *history(0, turn)[1:]]
            began = time.monotonic()
            answer = client.post("/v1/chat/completions", json={"model": "tiny:1", "messages": messages, "max_tokens": 8, "temperature": 0})
            cold_s = cold_s or time.monotonic() - began
            cached += answer.raise_for_status().json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 2 * 2000
    assert sum(metric(api, "api_server_cached_tokens_total", model="tiny:1", reason=reason) for reason in ("new", "bound")) == cached
    said = [{name: of_server(server, f"model_server_{name}") for name in SAVED} for server in servers]
    (at_work,) = [each for each in said if each["prompt_tokens_per_second"]]
    assert sum(each["reused_prompt_tokens_total"] for each in said) == cached
    assert at_work["saved_seconds_total"] == pytest.approx(cached / at_work["prompt_tokens_per_second"])
    assert 0 < at_work["saved_seconds_total"] < 2.5 * cold_s


def test_a_conversation_whose_server_is_gone_goes_on_at_another(fleet: tuple[Service, list[Service]]) -> None:
    api, servers = fleet
    with httpx.Client(base_url=api.url, timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for turn in range(2):
            for agent in range(AGENTS):
                body = {"model": "tiny:1", "messages": history(agent, turn), "max_tokens": 64, "temperature": 0}
                assert client.post("/v1/chat/completions", json=body).status_code == 200
            if not turn:
                servers[0].process.kill()
                servers[0].process.wait()
    assert turns(api, "bound") + turns(api, "lost") >= AGENTS
    assert turns(api, "lost") >= 1, "both servers had conversations"


def test_turns_of_long_conversations_wait_for_the_server_that_holds_them(tmp_path: Path) -> None:
    """Each server takes one request at once, and all agents ask at once: nobody is refused, and no prompt is read twice."""
    agents = 3
    # Six bytes of JSON for two tokens: read in little time, and more bytes than the answers of the two others are worth.
    padding = "é" * 3000
    assert len(json.dumps(padding)) > (agents - 1) * (picking.ANSWER + 512)
    with running(tmp_path, most=1, QUEUE_S="60") as (api, _):

        def ask(number: int, turn: int) -> int:
            messages = [{"role": "system", "content": f"{number}{padding}"}, *history(number, turn)[1:]]
            body = json.dumps({"model": "tiny:1", "messages": messages, "max_tokens": 8, "temperature": 0})
            headers = {"Authorization": f"Bearer {KEY}"}
            return httpx.post(f"{api.url}/v1/chat/completions", content=body, headers=headers, timeout=120).status_code

        assert [ask(number, 0) for number in range(agents)] == [200] * agents
        with ThreadPoolExecutor(agents) as pool:
            assert list(pool.map(lambda number: [ask(number, 1), ask(number, 2)], range(agents))) == [[200, 200]] * agents
        assert (turns(api, "new"), turns(api, "bound")) == (agents, 2 * agents)


def test_a_line_has_an_end(tmp_path: Path) -> None:
    with running(tmp_path, most=1, QUEUE_S="60", MAX_WAITING="1") as (api, servers):
        for server in servers:
            server.process.send_signal(signal.SIGSTOP)
        body = {"model": "tiny:1", "messages": history(1, 0), "max_tokens": 8}
        with ThreadPoolExecutor(8) as pool:
            headers = {"Authorization": f"Bearer {KEY}"}
            asked = [pool.submit(httpx.post, f"{api.url}/v1/chat/completions", json=body, headers=headers, timeout=120) for _ in range(6)]
            deadline = time.monotonic() + 30
            while (refused := [each.result().status_code for each in asked if each.done()]) != [429] * 3:
                assert time.monotonic() < deadline, refused
                time.sleep(0.1)
            for server in servers:
                server.process.send_signal(signal.SIGCONT)
            assert sorted(each.result().status_code for each in asked) == [200, 200, 200, 429, 429, 429]


def test_a_conversation_that_no_server_has_memory_for_waits_while_the_others_go_on(tmp_path: Path) -> None:
    """One server has room for two; the third client gets 429 in the end, and the two others find their prompts where they were, though
    their turns wait for each other and no more than one request may wait."""
    long = "A rule of the house. " * 1000
    with running(tmp_path, QUEUE_S="2", MAX_WAITING="1", most=1, cached_tokens=22_000, context=32_768, servers=1) as (api, _):

        def ask(number: int, turn: int) -> httpx.Response:
            messages = [{"role": "system", "content": f"{number} {long}"}, *history(number, turn)[1:]]
            body = {"model": "tiny:1", "messages": messages, "max_tokens": 8, "temperature": 0}
            return httpx.post(f"{api.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

        assert [ask(number, 0).status_code for number in (1, 2)] == [200, 200]
        refused = ask(3, 0)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_busy")
        assert int(refused.headers["retry-after"]) > 0
        with ThreadPoolExecutor(3) as pool:
            third = pool.submit(ask, 3, 0)
            while not metric(api, "api_server_waiting_requests", model="tiny:1"):
                time.sleep(0.01)
            shares: list[float] = []
            for answer in pool.map(ask, (1, 2), (1, 1)):
                assert answer.status_code == 200, answer.text
                usage = answer.json()["usage"]
                shares.append(usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"])
            assert third.result().status_code == 429
        assert min(shares) > 0.9
        assert (turns(api, "new"), turns(api, "bound"), turns(api, "paused")) == (2, 2, 0)
        assert 15_000 < metric(api, "api_server_held_tokens", model="tiny:1") < 25_000
        # A title or a short question asks for next to nothing.
        body = {"model": "tiny:1", "messages": history(4, 0), "max_tokens": 8}
        assert httpx.post(f"{api.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_server_learns_the_session_and_the_trace_and_nothing_of_the_key(tmp_path: Path) -> None:
    trace = {"traceparent": "00-1-2-01", "tracestate": "vendor=1"}
    sent = {"x-litellm-session-id": "s1", "x-team-session": "t1", **trace, "x-request-id": "r1", "x-private": "p"}
    with Fleet(tmp_path).running() as neighbours:
        [server] = neighbours.add(answers)
        with neighbours.gateway(SESSION_HEADERS="X-Team-Session") as api:
            body = {"model": "a", "messages": history(1, 0)}
            headers = {"Authorization": f"Bearer {KEY}", "x-cache-owner": "another", **sent}
            answer = httpx.post(f"{api.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
            assert answer.status_code == 200
        got = server.seen[-1].headers
    assert got["x-cache-owner"] == "key-1", "by whose name prompts and answers are kept apart, whatever a client says"
    assert {name: got.get(name) for name in sent} == {**sent, "x-private": None}
    assert not [value for value in got.values() if KEY in value]
