"""Conversations that one llama.cpp keeps warm, in slots and in its prompt cache: as many as the stack counts with, by the real engine."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.program.settings.capacity import Capacity
from model_sync import gguf
from tests import tiny_gguf
from tests.service.conftest import start_model_server

LAYERS, CONTEXT = 2, 4096
KV_BYTES = 2 * 2 * LAYERS * 64
"""Of one token: keys and values of 16 bits, one head of 64 in each layer."""
SHARED, OWN, ANSWER = "é" * 400, "é" * 1000, 8
"""What all system prompts begin with, as those of agents do: more than a tenth, and less than half. A letter is two tokens."""


def turn(url: str, agent: int, number: int) -> float:
    """The part of its prompt that the engine still had."""
    history = [{"role": "assistant", "content": "tick"}, {"role": "user", "content": "é" * 50}] * number
    messages = [{"role": "system", "content": f"{SHARED}{agent}{OWN}"}, {"role": "user", "content": "Say it."}, *history]
    body: dict[str, Any] = {"model": "loop", "messages": messages, "max_tokens": ANSWER, "temperature": 0}
    usage = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"]


@pytest.mark.parametrize(("slots", "cache_mib"), [(2, 0), (2, 3), (2, 5), (4, 5)])
def test_as_many_stay_warm_as_the_stack_counts_with(tmp_path: Path, slots: int, cache_mib: int) -> None:
    """Each in its turn, so that nothing but memory decides."""
    counted = Capacity(1, slots, CONTEXT, KV_BYTES, cache_mib * 2**20).conversations
    assert counted == slots - 1 + max(1, cache_mib // 2)
    store = tmp_path / "models"
    gguf.add("loop:1", tiny_gguf.make(tmp_path / "loop.gguf", "tick tock ", loop=True, layers=LAYERS, context=CONTEXT * slots), store)
    env = {"MODEL_ID": "loop", "CONTEXT_LENGTH": str(CONTEXT), "PARALLEL": str(slots), "PROMPT_CACHE_MIB": str(cache_mib)}
    with ExitStack() as stack:
        service = start_model_server(stack, store, tmp_path, "loop:1", "/ready", None, **env)
        found = [[turn(service.url, agent, number) for agent in range(counted)] for number in range(3)]
    assert all(part > 0.8 for part in [*found[1], *found[2]]), found
