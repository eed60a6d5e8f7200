"""docs/best-practices.md has the figures of bench/results, and no other."""

import json
import re

import pytest

from bench import practices


def test_the_page_is_the_one_that_the_results_give() -> None:
    assert practices.PAGE.read_text() == practices.page(), "run python -m bench"


def typed(text: str) -> list[str]:
    """Digits that stand in the text itself: not in a figure's place, in code, or in a link."""
    text = re.sub(r"\{\{[^{}]*\}\}|`[^`]*`|\]\([^)]*\)", "", text)
    return re.findall(r"\S*\d\S*", text)


def test_no_figure_is_typed_in() -> None:
    assert typed(practices.TEXT.read_text()) == []
    assert typed("takes 12 ms, `a1`, [x](b2.md), {{gateway results/x/64/y .0f}} and 7%") == ["12", "7%"]


def test_figures_are_of_the_files() -> None:
    picking = json.loads((practices.PAGE.parents[1] / "bench" / "results" / "picking.json").read_text())
    turns = picking["results"]["simulated fleets"]["short memory, 48 agents"]["ours"]["turns_a_minute"]
    (row,) = (line for line in practices.PAGE.read_text().splitlines() if line.startswith("| 48 |"))
    assert f" {turns:.0f} |" in row
    gateway = json.loads((practices.PAGE.parents[1] / "bench" / "results" / "gateway.json").read_text())["results"]
    slower = gateway["litellm"]["cpu"]["stream"]["ms"] / gateway["api_server"]["cpu"]["stream"]["ms"]
    assert practices.figure("gateway", "results/litellm/cpu/stream/ms by results/api_server/cpu/stream/ms", ".1f") == f"{slower:.1f}"
    assert practices.figure("picking", "sizes/servers", "d") == str(picking["sizes"]["servers"])
    assert practices.figure("picking", "sizes/memory/short", "MB") == f"{picking['sizes']['memory']['short'] / 1e6:g}"


def test_a_figure_that_no_result_has_is_refused() -> None:
    with pytest.raises(practices.FigureError, match=r"got results/nothing of picking.json, want what is there; it has no 'nothing'"):
        practices.figure("picking", "results/nothing", "d")


def test_what_is_said_of_compression_was_measured() -> None:
    """By docs/cache.md, and by the refusal of `cache.compression`."""
    results = json.loads((practices.PAGE.parent.parent / "bench" / "results" / "compression.json").read_text())["results"]
    assert results["programs"]
    for name, found in results["programs"].items():
        assert found["size"] > 0.9, name
        assert found["unpack_mb_per_s"] < results["disk"]["read_mb_per_s"], name
