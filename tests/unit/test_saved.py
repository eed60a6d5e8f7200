"""What tiers save, in tokens and seconds: each token in one tier, at a speed that was measured, whatever an engine or a pool says."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from api_server.metrics import Metrics as GatewayMetrics
from api_server.peers import Peers
from api_server.settings import Route
from api_server.usage import Reader
from model_server.metrics import Metrics
from model_server.saved import LONG, Saved, Tokens

CONTEXT = 8192
NEEDED = {"engine", "host", "disk"}


def seconds(registry: CollectorRegistry, tier: str) -> float:
    return registry.get_sample_value("model_server_saved_seconds_total", {"tier": tier}) or 0.0


def tokens(registry: CollectorRegistry) -> dict[str, float]:
    """By tier, without those that have none."""
    found = {tier: registry.get_sample_value("model_server_reused_prompt_tokens_total", {"tier": tier}) for tier in NEEDED}
    return {tier: value for tier, value in found.items() if value}


def answer(read: int, reused: int, prompt_ms: object) -> bytes:
    """As llama.cpp says it at the end of a completion."""
    return json.dumps(
        {"timings": {"cache_n": reused, "prompt_n": read, "prompt_ms": prompt_ms, "predicted_n": 5}}, separators=(",", ":")
    ).encode()


def speed(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("model_server_prompt_tokens_per_second") or 0.0


def test_what_is_reused_takes_what_reading_it_would_have_taken() -> None:
    metrics = Metrics(CONTEXT)
    metrics.count("openai", answer(2000, 0, 1000.0), 1.5)
    metrics.count("openai", answer(20, 2000, 500.0), 0.6)
    metrics.saved.settle()
    assert tokens(metrics.registry) == {"engine": 2000}
    assert speed(metrics.registry) == 2000, "a short read is slower a token, and says nothing"
    assert seconds(metrics.registry, "engine") == pytest.approx(1.0)


def test_without_a_measured_speed_there_are_no_seconds_until_there_is_one() -> None:
    metrics = Metrics(CONTEXT)
    for _ in range(2):
        metrics.count("openai", answer(LONG - 1, 4000, 100.0), 1)
        metrics.saved.settle()
    assert (tokens(metrics.registry), seconds(metrics.registry, "engine"), speed(metrics.registry)) == ({"engine": 8000}, 0, 0)
    metrics.count("openai", answer(1000, 0, 250.0), 1)
    for _ in range(2):
        metrics.saved.settle()
    assert seconds(metrics.registry, "engine") == pytest.approx(2.0), "and once"


def test_a_stream_that_says_no_time_is_timed_to_its_first_bytes() -> None:
    """llama.cpp's answers to /v1/messages have no timings."""
    metrics = Metrics(CONTEXT)
    said = [{"cache_read_input_tokens": cached, "input_tokens": read, "output_tokens": 5} for cached, read in ((0, 4000), (3990, 10))]
    cold, warm = (json.dumps({"usage": usage}, separators=(",", ":")) for usage in said)
    metrics.count("anthropic", cold.encode(), 2.5, 2.0)
    metrics.count("anthropic", warm.encode(), 0.6, 0.1)
    metrics.saved.settle()
    assert seconds(metrics.registry, "engine") == pytest.approx(3990 / 2000)
    whole = Metrics(CONTEXT)
    whole.count("anthropic", cold.encode(), 2.5)
    assert speed(whole.registry) == 0, "of an answer that is no stream, nobody knows when its prompt was read"


@pytest.mark.parametrize("strange", [0, 0.0, -1.0, 1e12, math.nan, math.inf, -math.inf, None, "soon", 1e-300, 10**400], ids=str)
def test_a_time_that_cannot_be_says_nothing_of_the_speed(strange: object) -> None:
    metrics = Metrics(CONTEXT)
    metrics.count("openai", answer(4000, 4000, strange), 2.0)
    metrics.saved.settle()
    assert (speed(metrics.registry), seconds(metrics.registry, "engine")) == (0, 0)
    metrics.count("openai", answer(4000, 0, 1000.0), 2.0)
    metrics.saved.settle()
    assert seconds(metrics.registry, "engine") == pytest.approx(1.0)


@pytest.mark.parametrize("claimed", [10**12, 10**14, 10**30])
def test_no_answer_reuses_more_than_a_context(claimed: int) -> None:
    metrics = Metrics(CONTEXT)
    metrics.count("openai", answer(1000, 0, 1000.0), 2.0)
    metrics.count("openai", answer(1, claimed, 1.0), 2.0)
    metrics.saved.settle()
    assert seconds(metrics.registry, "engine") <= CONTEXT / 1000


AMOUNTS = st.integers(min_value=0, max_value=10_000)


@settings(deadline=None)
@given(st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS, st.booleans()), max_size=20))
def test_each_reused_token_is_in_one_tier(steps: list[tuple[int, int, int, bool]]) -> None:
    registry = CollectorRegistry()
    saved = Saved(registry)
    saved.read(1000, 1.0, 2.0)
    for reused, host, disk, settles in steps:
        saved.came("host", host)
        saved.came("disk", disk)
        saved.reuse(reused)
        if settles:
            saved.settle()
    saved.settle()
    found = tokens(registry)
    assert sum(found.values()) == sum(step[0] for step in steps)
    assert found.get("host", 0) <= sum(step[1] for step in steps)
    assert found.get("disk", 0) <= sum(step[2] for step in steps)
    assert sum(seconds(registry, tier) for tier in NEEDED) == pytest.approx(sum(found.values()) / 1000)


def of_vllm(**changes: Any) -> Tokens:
    return Tokens(**{"read": 0, "reused": 0, "written": 0} | changes)


def test_vllms_own_counts_are_taken_from_look_to_look() -> None:
    metrics = Metrics(CONTEXT)
    metrics._began -= 100
    metrics.reached(of_vllm(read=6000, reads=2, timed=6000, seconds=3.0))
    metrics.reached(of_vllm(read=6100, reused=6000, host=2000, disk=1000, reads=5, timed=6100, seconds=9.0))
    metrics.saved.settle()
    assert tokens(metrics.registry) == {"engine": 3000, "host": 2000, "disk": 1000}
    assert speed(metrics.registry) == 2000, "the second look saw short reads alone"
    assert [seconds(metrics.registry, tier) for tier in ("engine", "host", "disk")] == pytest.approx([1.5, 1.0, 0.5])


def test_a_tier_that_is_named_before_its_answer_is_counted_waits_for_it() -> None:
    """vLLM counts the tier when it admits a request, and its tokens when their prompt has been read."""
    metrics = Metrics(CONTEXT)
    metrics.reached(of_vllm(disk=1000))
    metrics.saved.settle()
    assert tokens(metrics.registry) == {}
    metrics.reached(of_vllm(disk=1000, reused=1500))
    metrics.saved.settle()
    assert tokens(metrics.registry) == {"disk": 1000, "engine": 500}


STRANGE_COUNTS = st.integers(min_value=0, max_value=2**53)
STRANGE_SECONDS = st.one_of(st.floats(), st.sampled_from([-1.0, 0.0, 1e9, math.nan, math.inf]))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.builds(Tokens, *([STRANGE_COUNTS] * 7), STRANGE_SECONDS), max_size=8))
def test_counters_that_go_back_or_say_nonsense_leave_numbers_that_only_grow(looks: list[Tokens]) -> None:
    metrics = Metrics(CONTEXT)
    before: dict[str, float] = {}
    for look in looks:
        metrics.reached(look)
        metrics.saved.settle()
        now = {
            f"{sample.name} {sample.labels}": sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
        assert all(math.isfinite(value) and value >= before.get(name, 0) for name, value in now.items())
        before = now
        assert math.isfinite(speed(metrics.registry))
    assert b"NaN" not in generate_latest(metrics.registry)


def test_a_pool_that_claims_more_than_its_prompt_is_not_believed() -> None:
    metrics = GatewayMetrics([], {"a": Route(url="http://a:1")}, lambda: 0, Peers(b"me", 1))
    for claimed in (10**12, 50, -5, 2**60):
        reader = Reader("")
        reader.feed(json.dumps({"usage": {"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": claimed}}}).encode())
        assert reader.rest() is not None
        place: Any = SimpleNamespace(reason="bound", reusable=80)
        metrics.turned("a", place, reader, says=True)
    value = metrics.registry.get_sample_value
    assert value("api_server_cached_tokens_total", {"model": "a", "reason": "bound"}) == 150
    assert value("api_server_reusable_tokens_total", {"model": "a", "reason": "bound"}) == 160
