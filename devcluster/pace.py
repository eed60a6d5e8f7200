"""How many minutes the builds still take: planned figures, corrected by what this machine needed so far."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

_PRIOR_MIN = 2.0
"""Planned minutes that the expectation weighs against what is seen: after the first tools, the machine's own pace decides."""
_LEAST_SHARE = 0.1
"""A build that has used up its time has at least this share of it before it: nobody knows, and it is not nothing."""
_LEAST_LEARNT_MIN = 5.0
"""Planned minutes that must have been built before the pace is worth keeping."""


class Pace:
    """Times are seconds of a clock that only goes forward; planned and printed figures are minutes."""

    def __init__(self, planned: Mapping[str, float], at_once: int, slowness: float = 1.0) -> None:
        """`planned`: CPU minutes of each build. `slowness`: wall minutes that one of `at_once` builds takes for one of these."""
        self._planned = dict(planned)
        self._at_once = at_once
        self._expected = slowness
        self._started: dict[str, float] = {}
        self._took: dict[str, float] = {}

    def start(self, name: str, now: float) -> None:
        self._started[name] = now

    def end(self, name: str, now: float) -> None:
        self._took[name] = (now - self._started.pop(name)) / 60

    def running(self, now: float) -> dict[str, float]:
        """Seconds that each running build has taken."""
        return {name: now - since for name, since in dict(self._started).items()}

    def slowness(self, now: float) -> float:
        """What finished builds took for each planned minute; a running one counts as soon as it is late."""
        took = self._expected * _PRIOR_MIN + sum(self._took.values())
        planned = _PRIOR_MIN + sum(self._planned[name] for name in self._took)
        for name, seconds in self.running(now).items():
            if seconds / 60 > took / planned * self._planned[name]:
                took, planned = took + seconds / 60, planned + self._planned[name]
        return took / planned

    def left_min(self, now: float) -> int:
        """Whole minutes until the last build ends, at least 1 while one is to be done."""
        slowness, running = self.slowness(now), self.running(now)
        rest = {name: max(slowness * self._planned[name] - seconds / 60, _LEAST_SHARE * seconds / 60) for name, seconds in running.items()}
        rest |= {name: slowness * minutes for name, minutes in self._planned.items() if name not in running and name not in self._took}
        if not rest:
            return 0
        return max(1, math.ceil(max(sum(rest.values()) / self._at_once, *rest.values())))

    def learnt(self, now: float) -> float | None:
        """The slowness to expect the next time, or None after too little."""
        built = sum(self._planned[name] for name in self._took)
        return self.slowness(now) if built >= _LEAST_LEARNT_MIN else None


def recall(path: Path) -> float:
    """The slowness that was kept in `path`; 1 where none was."""
    try:
        return float(json.loads(path.read_text())["slowness"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1.0


def keep(path: Path, slowness: float | None) -> None:
    if slowness is not None:
        fresh = path.with_name(f".{path.name}.partial")
        fresh.write_text(json.dumps({"slowness": round(slowness, 2)}) + "\n")
        fresh.replace(path)
