"""Conversations that the next process of a model server still has: the real engine, by its own files of slots."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import ModelServerFactory
from tests.service.processes import Service
from tests.service.test_model_server import metric

SYSTEM = "A rule of the house. " * 30
"""Over 600 tokens of the scripted model."""


def turn(service: Service, agent: str, number: int = 0) -> tuple[str, int, int]:
    """Answer, tokens of the prompt, and how many of those the engine still had."""
    history = [{"role": "assistant", "content": "Done."}, {"role": "user", "content": "And again."}] * number
    messages = [{"role": "system", "content": f"{agent} {SYSTEM}"}, {"role": "user", "content": "Say it."}, *history]
    body: dict[str, Any] = {"model": "tiny:1", "messages": messages, "max_tokens": 8, "temperature": 0}
    said = httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
    usage = said["usage"]
    return said["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def by_tier(service: Service, name: str) -> dict[str, float]:
    lines = httpx.get(f"{service.url}/metrics", timeout=10).text.splitlines()
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{tier=")}


def reused(service: Service) -> dict[str, float]:
    return by_tier(service, "model_server_reused_prompt_tokens_total")


def saved(service: Service) -> dict[str, float]:
    return by_tier(service, "model_server_saved_seconds_total")


def end(service: Service, number: int = signal.SIGTERM) -> None:
    os.kill(service.process.pid, number)
    service.ended()


@pytest.fixture
def server(model_server: ModelServerFactory, tmp_path: Path) -> Callable[..., Service]:
    def start(**env: str) -> Service:
        given = {"KEPT_DIR": str(tmp_path / "kept"), "KEPT_MIB": "64", "DRAIN_DELAY_S": "0", "CONTEXT_LENGTH": "2048", **env}
        return model_server("tiny:1", **given)

    return start


def test_both_slots_are_warm_after_a_restart(server: Callable[..., Service], tmp_path: Path) -> None:
    first = server()
    assert [turn(first, agent)[2] for agent in ("one", "two")] == [0, 0]
    end(first)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    second = server()
    held = metric(second, "model_server_restored_tokens")
    assert held > 1200
    found = [turn(second, agent, 1) for agent in ("one", "two")]
    assert all(prompt - cached < 100 for _, prompt, cached in found), found
    warm = sum(cached for _, _, cached in found)
    assert reused(second) == {"disk": warm, "host": 0, "engine": 0}, "of the files, and each once"
    assert saved(second) == {"disk": 0, "host": 0, "engine": 0, "answers": 0}, "nobody knows yet how fast it reads"
    cold = turn(second, "three")[2]
    assert cold < 100
    speed = metric(second, "model_server_prompt_tokens_per_second")
    assert saved(second)["disk"] == pytest.approx(warm / speed, rel=0.05)
    again = turn(second, "three", 1)[2]
    assert again > 600
    tiers = reused(second)
    assert warm <= tiers["disk"] <= held, "never more than the files had"
    assert sum(tiers.values()) == warm + cold + again, "no token is in two tiers"
    assert not list((tmp_path / "kept").iterdir()), "each is used once"
    end(second)
    # What it says is what a server says that has read all of it.
    third = server(KEPT_DIR="")
    assert [turn(third, agent, 1)[0] for agent in ("one", "two")] == [said for said, _, _ in found]


def test_who_is_killed_keeps_nothing(server: Callable[..., Service]) -> None:
    first = server()
    turn(first, "one")
    end(first, signal.SIGKILL)
    assert turn(server(), "one", 1)[2] == 0


def other_content(kept: Path) -> None:
    for path in kept.glob("*.slot"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def other_engine(kept: Path) -> None:
    document = json.loads((kept / "kept.json").read_text())
    (kept / "kept.json").write_text(json.dumps({**document, "engine": document["engine"].replace("llama.cpp", "llama.cpp of before")}))


def no_list(kept: Path) -> None:
    (kept / "kept.json").write_text('{"engine": 1, "slots": [{"number": "../../etc/passwd"}]}')


def no_file(kept: Path) -> None:
    for path in kept.glob("*.slot"):
        path.unlink()


@pytest.mark.parametrize("harm", [other_content, other_engine, no_list, no_file])
def test_what_is_not_as_it_was_written_is_not_read(server: Callable[..., Service], tmp_path: Path, harm: Callable[[Path], None]) -> None:
    first = server()
    turn(first, "one")
    end(first)
    harm(tmp_path / "kept")
    second = server()
    assert metric(second, "model_server_restored_tokens") == 0
    assert turn(second, "one", 1)[2] == 0


@pytest.mark.parametrize("changed", [{"CONTEXT_LENGTH": "1536"}, {"PARALLEL": "1"}])
def test_another_size_of_the_engine_reads_nothing(server: Callable[..., Service], changed: dict[str, str]) -> None:
    first = server()
    turn(first, "one")
    end(first)
    assert metric(server(**changed), "model_server_restored_tokens") == 0


def test_the_longest_conversation_is_kept_where_there_is_room_for_one(server: Callable[..., Service], tmp_path: Path) -> None:
    first = server(CONTEXT_LENGTH="8192")
    turn(first, "one", 30)
    turn(first, "two", 80)
    end(first)
    short, long = sorted(path.stat().st_size for path in (tmp_path / "kept").glob("*.slot"))
    assert long < 2**20 < short + long, "one of them fits into a MiB"
    second = server(CONTEXT_LENGTH="8192", KEPT_MIB="1")
    end(second)
    assert [path.stat().st_size for path in (tmp_path / "kept").glob("*.slot")] == [long]
    third = server(CONTEXT_LENGTH="8192", KEPT_MIB="1")
    assert turn(third, "two", 81)[2] > 2000
    assert turn(third, "one", 31)[2] < 100


def test_a_limit_of_nothing_keeps_nothing(server: Callable[..., Service], tmp_path: Path) -> None:
    first = server(KEPT_MIB="0")
    turn(first, "one")
    end(first)
    assert not list((tmp_path / "kept").glob("*.slot"))
    assert turn(server(), "one", 1)[2] == 0


def no_directory(kept: Path) -> None:
    kept.write_text("a file")


def list_in_the_way(kept: Path) -> None:
    (kept / "kept.json").mkdir(parents=True)


def next_list_in_the_way(kept: Path) -> None:
    (kept / "kept.json.new").mkdir(parents=True)


@pytest.mark.parametrize("harm", [no_directory, list_in_the_way, next_list_in_the_way])
def test_a_directory_that_cannot_be_written_costs_the_warmth_alone(
    server: Callable[..., Service], tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    harm(tmp_path / "kept")
    first = server()
    turn(first, "one")
    end(first)
    log = first.log.read_text()
    assert str(tmp_path / "kept") in log
    assert "Traceback" not in log
    assert first.ended() == 0
    assert turn(server(), "one", 1)[2] == 0
