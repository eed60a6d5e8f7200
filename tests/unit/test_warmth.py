"""What explain says of prompts that are read again."""

from typing import get_args

import pytest

from api_server.picking import Reason
from infra.analysis.explain import warmth
from infra.analysis.explain.warmth import notes


def said(**counters: dict[str, int]) -> str:
    """As an API server says it, of model a."""
    text = ""
    for name, of in counters.items():
        text += f"# TYPE api_server_{name}_total counter\n"
        text += "".join(f'api_server_{name}_total{{model="a",reason="{reason}"}} {float(value)}\n' for reason, value in of.items())
    return text


def test_every_reason_of_the_gateway_has_a_cause() -> None:
    assert set(warmth._CAUSES) == set(get_args(Reason))


@pytest.mark.parametrize("reason", ["paused", "lost", "spilled", "bound"])
def test_a_low_share_is_said_with_what_took_most_of_it(reason: str) -> None:
    reusable = {"bound": 500_000, "paused": 10_000, "lost": 10_000, "spilled": 10_000}
    cached = {**reusable, "lost": 5_000}
    texts = [said(reusable_tokens=reusable, cached_tokens=cached), said(reusable_tokens={reason: 270_000}, cached_tokens={reason: 0})]
    (line,) = notes(texts)
    cause, do = warmth._CAUSES[reason]
    assert line == (f"models.a: got 66% of 800000 tokens from the memory of servers that had read them ({cause}), want 90% or more; {do}")


def test_servers_that_do_not_say_what_they_used_are_judged_by_their_turns() -> None:
    (line,) = notes([said(turns={"bound": 60, "paused": 30, "lost": 10, "new": 1000})])
    assert line.startswith("models.a: got 60% of 100 turns on the server that holds their conversation")
    assert warmth._CAUSES["paused"][1] in line


@pytest.mark.parametrize(
    "text",
    [
        "",
        said(turns={"bound": 95, "spilled": 5}),
        said(turns={"bound": 1, "lost": 90}),
        said(turns={"new": 10_000}),
        said(reusable_tokens={"bound": 300_000}, cached_tokens={"bound": 280_000}),
        said(reusable_tokens={"lost": 100_000}, cached_tokens={"lost": 0}),
    ],
    ids=["nothing", "enough of it", "too few turns", "all are new", "warm", "too few tokens"],
)
def test_nothing_is_said_of_what_is_well_or_says_nothing(text: str) -> None:
    assert notes([text]) == []


@pytest.mark.parametrize(
    "strange",
    [
        "<html>no metrics</html>",
        'api_server_turns_total{model="a"',
        '# TYPE api_server_turns_total counter\napi_server_turns_total{model="a"} 500\n',
    ],
    ids=["another program", "cut off", "other labels"],
)
def test_what_is_no_text_of_an_api_server_hides_nothing_of_the_others(strange: str) -> None:
    low = said(turns={"bound": 60, "paused": 40})
    assert notes([strange, low]) == notes([low]) != []
