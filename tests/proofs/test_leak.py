"""Does an answer come from another conversation? Thousands, of a model that tells, and of a real one; both engines. 25 minutes."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from images import embedded
from model_sync import gguf
from tests.proofs.records import Proof
from tests.service import leak
from tests.service import ollama as ollama_process
from tests.service.conftest import start_model_server
from tests.service.processes import Service
from tests.service.test_leak import recalling

PROOF = Proof(
    "leak",
    guards=(
        *("requirements.lock", "tools/ollama", "images/ollama", "images/pins.toml"),
        *("model_server", "tests/service/leak.py", "tests/tiny_gguf.py"),
    ),
)
CACHES_MIB = (0, 1, 64)
"""No cache, one of a few conversations, whose entries are evicted all the time, and one that holds all of them."""
CONFIGURATIONS = [(engine, slots, mib) for engine in ("model-server", "ollama") for slots in (2, 4) for mib in CACHES_MIB]
ANSWERS, REAL_ANSWERS = 300, 120


def start(stack: ExitStack, engine: str, store: Path, work: Path, model: str, slots: int, cache_mib: int) -> Service:
    cache = str(cache_mib)
    if engine == "model-server":
        return start_model_server(stack, store, work, model, PROMPT_CACHE_MIB=cache, PARALLEL=str(slots), MAX_QUEUE="64")
    program = ollama_process.install(work)
    service = stack.enter_context(ollama_process.running(program, store, work, OLLAMA_NUM_PARALLEL=str(slots), LLAMA_ARG_CACHE_RAM=cache))
    ollama_process.load(service, model)
    return service


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("engine", "slots", "cache_mib"), CONFIGURATIONS)
def test_a_model_that_tells(engine: str, slots: int, cache_mib: int, tmp_path: Path, figures: dict[str, Any]) -> None:
    with ExitStack() as stack:
        service = start(stack, engine, recalling(tmp_path), tmp_path, "recall:1", slots, cache_mib)
        found = leak.hunt(service.url, "recall:1", ANSWERS, at_once=4 * slots, seed=slots * 1000 + cache_mib)
        count_reuse(service, engine, found)
    figures[f"{engine}, {slots} slots, {cache_mib} MiB"] = facts(found)
    assert found.cached_tokens > 0, "nothing was taken from a cache, so nothing could leak"
    assert found.crossed == []
    assert found.own == found.answers >= ANSWERS


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("engine", "slots"), [("model-server", 2), ("model-server", 4), ("ollama", 2), ("ollama", 4)])
def test_a_real_model(engine: str, slots: int, tmp_path: Path, figures: dict[str, Any]) -> None:
    """It need not say its own marker; it must say no other one."""
    [weights] = embedded.default_model().values()
    gguf.add("real:1", weights, tmp_path / "models")
    with ExitStack() as stack:
        service = start(stack, engine, tmp_path / "models", tmp_path, "real:1", slots, 64)
        found = leak.hunt(service.url, "real:1", REAL_ANSWERS, at_once=4 * slots, seed=slots)
        count_reuse(service, engine, found)
    figures[f"{engine}, {slots} slots, real model"] = facts(found)
    assert found.cached_tokens > 0, "nothing was taken from a cache, so nothing could leak"
    assert found.crossed == []


def count_reuse(service: Service, engine: str, found: leak.Found) -> None:
    if engine == "ollama":
        found.cached_tokens = leak.reused_by_ollama(service)


def facts(found: leak.Found) -> dict[str, int]:
    return {"answers": found.answers, "own": found.own, "crossed": len(found.crossed), "cached_tokens": found.cached_tokens}
