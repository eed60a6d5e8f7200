"""Agents' conversations stay with the server that holds their prompts: two real engines, and what they say of their caches."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import names
from tests.service.conftest import KEY, SCRIPT, start_api_server, start_model_server
from tests.service.processes import Service, free_port
from tests.service.test_gateway import metric

AGENTS = 4


@pytest.fixture
def fleet(store: Path, tmp_path: Path) -> Iterator[tuple[Service, list[Service]]]:
    """A gateway before two model servers of one model."""
    port = free_port()
    with ExitStack() as stack:
        servers: list[Service] = []
        for number in (1, 2):
            (tmp_path / str(number)).mkdir()
            servers.append(start_model_server(stack, store, tmp_path / str(number), "tiny:1", HOST=f"127.0.0.{number}", PORT=str(port)))
        routes: dict[str, dict[str, object]] = {"tiny:1": {"url": f"http://{names.FLEET}:{port}"}}
        yield start_api_server(stack, tmp_path, routes, process=names.resolving(tmp_path, "127.0.0.1", "127.0.0.2")), servers


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
