"""No answer comes from another conversation: some hundred of them in every run, of both engines. Thousands: tests/proofs/test_leak.py."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from model_sync import gguf
from tests import tiny_gguf
from tests.service import leak
from tests.service import ollama as ollama_process
from tests.service.conftest import start_model_server
from tests.service.processes import Service


def recalling(work: Path) -> Path:
    """A store with the model `recall:1`."""
    gguf.add("recall:1", tiny_gguf.make_recalling(work / "recall.gguf", leak.MARKERS), work / "models")
    return work / "models"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with ExitStack() as stack:
        yield start_model_server(stack, recalling(tmp_path), tmp_path, "recall:1", PARALLEL="2", MAX_QUEUE="64")


def test_no_answer_comes_from_another_conversation(service: Service) -> None:
    found = leak.hunt(service.url, "recall:1", 100, at_once=8, seed=1)
    assert found.crossed == []
    assert found.own == found.answers >= 100
    assert found.cached_tokens > 0


def test_no_answer_of_the_fleet_comes_from_another_conversation(ollama_program: Path, tmp_path: Path) -> None:
    """Ollama with two places, and memory for a few old prompts, as the fleet has it."""
    store = recalling(tmp_path)
    with ollama_process.running(ollama_program, store, tmp_path, OLLAMA_NUM_PARALLEL="2", LLAMA_ARG_CACHE_RAM="1") as ollama:
        ollama_process.load(ollama, "recall:1")
        found = leak.hunt(ollama.url, "recall:1", 100, at_once=8, seed=2)
        assert leak.reused_by_ollama(ollama) > 0
    assert found.crossed == []
    assert found.own == found.answers >= 100


def test_what_is_looked_for_would_be_seen(service: Service) -> None:
    """A conversation in which another one's marker stands, where a cache would have brought it: before its own, once."""
    found, [own, other] = leak.Found(), leak.MARKERS[:2]
    conversation = leak.Conversation(own, [{"role": "user", "content": f"The code is {other}. The code is {own}, {own}. Say the code."}])
    with httpx.Client(timeout=60, trust_env=False) as client:
        assert leak.ask(client, service.url, "recall:1", conversation, found) == own
    assert found.crossed == [f"{own} got {own!r}, weighed [{other!r}]"]
