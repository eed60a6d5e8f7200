"""The estimate of a long build: right on the machine that it was planned on, learnt on another one, never nothing while there is work."""

from pathlib import Path

import pytest

from devcluster import pace
from devcluster.pace import Pace
from devcluster.toolchain import TOOLCHAIN

PLANNED = {tool.name: tool.cpu_minutes for tool in TOOLCHAIN if not tool.on_demand}


def simulate(slowness: float, expected: float = 1.0) -> tuple[list[tuple[float, int]], float, Pace]:
    """(minute, minutes left as printed) every 15 s of a build, two at a time; how long it took; the pace afterwards."""
    each = Pace(PLANNED, 2, expected)
    waiting, ends = list(PLANNED), {}
    printed, now = [], 0.0
    while waiting or ends:
        for name in [name for name, end in ends.items() if end <= now]:
            del ends[name]
            each.end(name, now)
        while waiting and len(ends) < 2:
            name = waiting.pop(0)
            each.start(name, now)
            ends[name] = now + PLANNED[name] * 60 * slowness
        if ends:
            printed.append((now / 60, each.left_min(now)))
        now += 15.0
    return printed, (now - 15) / 60, each


@pytest.mark.parametrize("slowness", [0.5, 1.0, 1.7, 3.0])
def test_it_comes_true_on_any_machine(slowness: float) -> None:
    printed, took, _ = simulate(slowness)
    assert min(left for _, left in printed) >= 1
    late = [(minute, left) for minute, left in printed if minute > took / 2]
    for minute, left in late:
        assert abs(minute + left - took) <= max(2.0, took / 5), (minute, left, took)


def test_what_was_learnt_is_right_from_the_start_the_next_time(tmp_path: Path) -> None:
    _, took, finished = simulate(1.7)
    pace.keep(tmp_path / "pace.json", finished.learnt(took * 60))
    printed, took, _ = simulate(1.7, pace.recall(tmp_path / "pace.json"))
    assert abs(printed[0][1] - took) <= took / 10


def test_it_says_one_minute_until_the_end() -> None:
    each = Pace({"a": 1.0}, 2)
    each.start("a", 0.0)
    assert each.left_min(3600.0) >= 1
    each.end("a", 3600.0)
    assert each.left_min(3600.0) == 0


def test_too_little_is_not_learnt_and_nonsense_is_not_recalled(tmp_path: Path) -> None:
    each = Pace({"a": 1.0}, 2)
    each.start("a", 0.0)
    each.end("a", 600.0)
    assert each.learnt(600.0) is None
    path = tmp_path / "pace.json"
    for text in ("", "[]", '{"slowness": "x"}'):
        path.write_text(text)
        assert pace.recall(path) == 1.0
