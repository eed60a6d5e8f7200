"""What the agent concludes from what it reads."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ollama_agent import connections, probe, replica
from ollama_agent.catalog import Catalog, Model
from ollama_agent.ollama import ConnectionLostError, Ollama, OllamaError
from ollama_agent.replica import Replica
from ollama_agent.settings import AgentSettings, ProbeSettings

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(local: str, state: str, inode: int = 7) -> str:
    return f"   0: {local} 0A01F40A:C001 {state} 00000000:00000000 00:00000000 00000000 10001        0 {inode} 1 0 0\n"


def net(tmp_path: Path, tcp: list[str], tcp6: list[str] | None = None) -> Path:
    (tmp_path / "tcp").write_text(HEADER + "".join(tcp))
    if tcp6 is not None:
        (tmp_path / "tcp6").write_text(HEADER + "".join(tcp6))
    return tmp_path


OUTSIDE, LOOPBACK = "0501F40A:2CAA", "0100007F:2CAA"
MAPPED, MAPPED_LOOPBACK = "0000000000000000FFFF00000501F40A:2CAA", "0000000000000000FFFF00000100007F:2CAA"


def test_connections_from_outside_the_pod_are_counted(tmp_path: Path) -> None:
    tables = net(tmp_path, [row("00000000:2CAA", "0A"), row(OUTSIDE, "01"), row(OUTSIDE, "04"), row(OUTSIDE, "08")])
    assert connections.in_flight(11434, tables) == 3


@pytest.mark.parametrize("state", ["02", "03", "05", "06", "07", "09", "0B"])
def test_connections_that_carry_nothing_more_are_not_counted(tmp_path: Path, state: str) -> None:
    assert connections.in_flight(11434, net(tmp_path, [row(OUTSIDE, state)])) == 0


def test_connections_of_the_pod_itself_and_of_other_ports_are_not_counted(tmp_path: Path) -> None:
    tables = net(tmp_path, [row(LOOPBACK, "01"), row("0501F40A:24F9", "01")], [row(MAPPED_LOOPBACK, "01")])
    assert connections.in_flight(11434, tables) == 0


def test_connections_over_ipv6_and_mapped_ones_are_counted(tmp_path: Path) -> None:
    tables = net(tmp_path, [], [row(MAPPED, "01"), row("000080FE00000000000000000100007F:2CAA", "01")])
    assert connections.in_flight(11434, tables) == 2


def test_a_server_that_starts_anew_has_another_listener(tmp_path: Path) -> None:
    assert connections.listener(11434, net(tmp_path, [row(OUTSIDE, "01", 9)])) is None
    assert connections.listener(11434, net(tmp_path, [], [row("00000000000000000000000000000000:2CAA", "0A", 41)])) == 41


def test_a_keep_alive_without_a_unit_is_a_number() -> None:
    values = [Model(name="a:1", context_length=1, keep_alive=text).keep_alive_value for text in ("-1", "0", "10m")]
    assert values == [-1, 0, "10m"]


def test_the_catalog_is_read_when_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "catalog.json"
    catalog = Catalog(path)
    catalog.refresh()
    assert not catalog.present
    path.write_text(json.dumps({"version": 1, "models": [{"name": "b:2", "digest": "sha256:ab", "context_length": 8, "later": True}]}))
    catalog.refresh()
    assert [model.name for model in catalog.models] == ["b:2"]
    assert catalog.models[0].matches("ab")
    assert not catalog.models[0].matches("cd")
    assert catalog.present


def settings(**fields: Any) -> ProbeSettings:
    return ProbeSettings(**{"host": "x", "replicas": 2, "models": '{"a:1": 2}', "min_context": 16384, **fields})


def answer(effective: int | None, reason: str | None = None, declared: int = 16384) -> dict[str, Any]:
    return {"reason": reason, "models": [{"name": "a:1", "context_length": declared, "effective_context": effective, "problem": None}]}


def test_every_replica_with_too_little_context_is_a_line_of_its_own() -> None:
    lines = probe.broken(settings(), {"ollama-0": answer(16384), "ollama-1": answer(4096)})
    assert lines == [
        "models.a:1: got effective context 4096 on ollama-1, want >= 16384; lower its contextLength, or give it a model and memory that hold more"
    ]
    assert probe.broken(settings(), {"ollama-0": answer(16384, declared=32768)})[0].startswith(
        "models.a:1: got effective context 16384 on ollama-0, want >= 32768"
    )


def test_s16_the_least_context_is_asked_of_models_that_chat_alone() -> None:
    wanted = {"coder:1": 32768, "embed:1": 2048}
    models = [{"name": name, "context_length": tokens, "effective_context": tokens} for name, tokens in wanted.items()]
    every = json.dumps(dict.fromkeys(wanted, 1))
    beside = settings(models=every, embedding='["embed:1"]')
    assert probe.broken(beside, {"ollama-0": {"models": models}}) == []
    (line,) = probe.broken(settings(models=every), {"ollama-0": {"models": models}})
    assert line.startswith("models.embed:1: got effective context 2048 on ollama-0, want >= 16384")
    models[1] |= {"effective_context": 1024}
    (line,) = probe.broken(beside, {"ollama-0": {"models": models}})
    assert line.startswith("models.embed:1: got effective context 1024 on ollama-0, want >= 2048")


def test_a_model_that_is_still_loading_breaks_nothing_and_is_waited_for() -> None:
    answers = {"ollama-0": answer(16384), "ollama-1": answer(None, "models.a:1: loading")}
    assert probe.broken(settings(), answers) == []
    assert probe.missing(settings(), answers) == ["ollama-1: models.a:1: loading"]
    assert probe.missing(settings(), {"ollama-0": answer(16384)}) == ["1 of 2 replicas of this revision answer"]
    assert probe.missing(settings(), {"ollama-0": answer(16384), "ollama-1": answer(None)}) == ["models.a:1 on 1 of 2 replicas"]


def test_the_result_is_the_smallest_context_of_all_replicas() -> None:
    assert probe.effective(settings(), {"ollama-0": answer(32768), "ollama-1": answer(16384)}) == {"a:1": 16384}


def of_one_model(tmp_path: Path) -> Replica:
    """An agent whose model is in the store, and was not loaded yet."""
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps({"version": 1, "models": [{"name": "a:1", "context_length": 8}]}))
    agent = Replica(AgentSettings(ollama_url="http://127.0.0.1:1", catalog=path), Catalog(path), available={"a:1": "ab"})
    agent.catalog.refresh()
    return agent


class Leaving(Ollama):
    """A server whose load fails just after the model has left the catalog."""

    leave: Callable[[], None]

    async def load(self, model: Model, timeout_s: float) -> None:
        self.leave()
        raise OllamaError("500 unknown model architecture")


def test_a_load_that_ends_after_its_model_has_left_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last line of the log is what `make explain` repeats."""
    agent = of_one_model(tmp_path)

    def leave() -> None:
        agent.settings.catalog.write_text(json.dumps({"version": 1, "models": []}))
        agent.catalog.refresh()

    async def load() -> None:
        async with aiohttp.ClientSession() as session:
            server = Leaving("http://127.0.0.1:1", session)
            server.leave = leave
            await agent.load_next(server)

    asyncio.run(load())
    assert not caplog.records
    assert not agent.problems.all()


class Lost(Ollama):
    """A server that ends its connection in place of an answer."""

    async def load(self, model: Model, timeout_s: float) -> None:
        raise ConnectionLostError("/api/generate: ServerDisconnectedError")


@pytest.mark.parametrize(
    ("listeners", "says"),
    [
        ([7, 7, 7, None], "got the end of the server while it was loaded, 1 times"),
        ([7, 7, 7, 8], "got the end of the server while it was loaded, 1 times"),
        ([7], "got /api/generate: ServerDisconnectedError"),
    ],
)
def test_a_server_that_ends_may_be_listed_as_listening_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listeners: list[int | None], says: str
) -> None:
    """The kernel closes the connection of a process that was killed first, and the agent hears of that at once."""
    agent = of_one_model(tmp_path)
    agent._listener = 7
    monkeypatch.setattr(connections, "listener", lambda *_: listeners.pop(0) if len(listeners) > 1 else listeners[0])
    monkeypatch.setattr(replica, "_CLOSES_S", 0.3)

    async def load() -> None:
        async with aiohttp.ClientSession() as session:
            await agent.load_next(Lost("http://127.0.0.1:1", session))

    asyncio.run(load())
    assert (agent.problems.line("a:1") or "").startswith(f"models.a:1: {says}, want it loaded; ")
