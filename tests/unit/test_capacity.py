"""How many conversations a stack keeps warm."""

import pytest

from infra.analysis.manifests.report import carries
from infra.program.arguments import routes
from infra.program.outputs import models
from infra.program.settings import parse
from infra.program.settings.capacity import Capacity, capacities
from infra.program.settings.section import SettingsError, Speed
from tests.unit.test_settings import document


@pytest.mark.parametrize(
    ("one_memory", "kept", "conversations", "tokens"),
    [
        (False, 0.0, 6, 6000),
        # A conversation that comes back needs room for the one that it takes a slot from.
        (False, 1000.0 * 10, 6, 6000),
        (False, 1999.0 * 10, 6, 3 * 2999),
        (False, 2000.0 * 10, 9, 9000),
        (False, 4500.0 * 10, 15, 16500),
        (True, 0.0, 6, 6000),
        (True, 999.0 * 10, 6, 6000 + 3 * 999),
        (True, 1000.0 * 10, 9, 9000),
        (True, 4500.0 * 10, 18, 19500),
    ],
)
def test_slots_and_memory_of_every_server(one_memory: bool, kept: float, conversations: int, tokens: int) -> None:
    found = Capacity(servers=3, slots=2, context_length=1000, kv_bytes_per_token=10, prompt_cache=kept, one_memory=one_memory)
    assert (found.conversations, found.tokens, found.kv_bytes) == (conversations, tokens, 20000)


@pytest.mark.parametrize(
    ("length", "slots", "read", "write", "turns"),
    [
        # 7,500 tokens are read in 2 s, and 500 written in 8 s: a slot answers 6 turns a minute.
        (200_000, 1, 3750, 62.5, 18.0),
        (200_000, 4, 3750, 62.5, 72.0),
        # Beyond five slots, the next prompt waits for the one before it to be read.
        (200_000, 5, 3750, 62.5, 90.0),
        (200_000, 64, 3750, 62.5, 90.0),
        # A prompt is as long as there is room for: 5 % of 40,000 tokens are 2,000.
        (40_500, 1, 1000, 62.5, 18.0),
        (512, 1, 1e-6, 1e-6, 0.0),
    ],
)
def test_a_turn_takes_a_slot_and_its_new_part_the_whole_server(length: int, slots: int, read: float, write: float, turns: float) -> None:
    """Worked out by hand, for three servers."""
    speed = Speed(read=read, write=write)
    found = Capacity(servers=3, slots=slots, context_length=length, kv_bytes_per_token=10, prompt_cache=0, speed=speed)
    assert found.turns_per_minute == turns


def test_turns_are_said_where_a_speed_was_measured_and_nowhere_else() -> None:
    told = document("prod")
    told["models"][0]["speed"] = {"read": 3750, "write": 62.5}
    settings = parse(told)
    found = capacities(settings)
    assert [each.turns_per_minute is None for each in found.values()] == [False, True]
    assert [each.turns_per_minute for each in models(settings)] == [each.turns_per_minute for each in found.values()]
    assert [route.get("turns_per_hour") for route in routes(settings).values()] == [each.turns_per_hour_each for each in found.values()]
    table = carries(found).splitlines()
    assert table[0].endswith("| turns a minute |")
    assert table[2].endswith(f"| {found['qwen3-coder:30b'].turns_per_minute:g} |")
    assert table[3].endswith("| not measured |")
    told["modelServers"][0]["speed"] = {"read": 90, "write": 7}
    assert None not in [each.turns_per_minute for each in capacities(parse(told)).values()]


@pytest.mark.parametrize(
    "speed", [{"read": 0, "write": 1}, {"read": 1}, {"read": 1, "write": float("nan")}, {"read": 1, "write": float("inf")}, 5]
)
def test_a_speed_that_is_none_is_refused(speed: object) -> None:
    told = document("prod")
    told["models"][0]["speed"] = speed
    with pytest.raises(SettingsError, match=r"modelfleet:models\.0\.speed"):
        parse(told)


def test_the_committed_prod_says_what_it_carries() -> None:
    """Worked out by hand: 64 Ki tokens of 96 KiB are 6 GiB, of which 8 GiB of host memory hold one. vLLM has 0.9 of two GPUs of 45 GiB, less
    29.8 for the weights and 14.2 beside them, which is room for six of them in each server."""
    found = capacities(parse(document("prod")))
    assert {name: (each.servers, each.slots, each.conversations) for name, each in found.items()} == {
        "qwen3-coder:30b": (3, 1, 3),
        "qwen3-coder-30b-fp8": (2, 2, 12),
    }
    assert found["qwen3-coder:30b"].tokens == 3 * (8 * 2**30 // 98304)


def test_old_prompts_take_what_the_memory_of_the_model_server_has_left() -> None:
    told = document("dev")
    told["modelServers"][0]["resources"]["memory"] = "400Mi"
    found = capacities(parse(told))["smollm2-135m"]
    assert found.kv_bytes + found.prompt_cache + 100e6 == pytest.approx(0.9 * 400 * 2**20)
    assert 0 < found.prompt_cache < found.kv_bytes
