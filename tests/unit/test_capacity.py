"""How many conversations a stack keeps warm."""

import pytest

from infra.program.settings import parse
from infra.program.settings.capacity import Capacity, capacities
from tests.unit.test_settings import document


@pytest.mark.parametrize(
    ("kept", "conversations", "tokens"),
    [(0.0, 6, 6000), (999.0 * 10, 6, 6000 + 3 * 999), (1000.0 * 10, 9, 9000), (4500.0 * 10, 18, 19500)],
)
def test_slots_and_host_memory_of_every_server(kept: float, conversations: int, tokens: int) -> None:
    found = Capacity(servers=3, slots=2, context_length=1000, kv_bytes_per_token=10, prompt_cache=kept)
    assert (found.conversations, found.tokens, found.kv_bytes) == (conversations, tokens, 20000)


def test_the_committed_prod_says_what_it_carries() -> None:
    """Worked out by hand: 64 Ki tokens of 96 KiB are 6 GiB, of which 8 GiB of host memory hold one; the model server's own default holds as
    many as its slots."""
    found = capacities(parse(document("prod")))
    assert {name: (each.servers, each.slots, each.conversations) for name, each in found.items()} == {
        "qwen3-coder:30b": (3, 1, 6),
        "qwen3-coder-30b-cpu": (2, 2, 8),
    }
    assert found["qwen3-coder:30b"].tokens == 3 * (65536 + 8 * 2**30 // 98304)


def test_old_prompts_take_what_the_memory_of_the_model_server_has_left() -> None:
    told = document("dev")
    told["modelServers"][0]["resources"]["memory"] = "400Mi"
    found = capacities(parse(told))["smollm2-135m"]
    assert found.kv_bytes + found.prompt_cache + 100e6 == pytest.approx(0.9 * 400 * 2**20)
    assert 0 < found.prompt_cache < found.kv_bytes
