"""How long conversations pause between two turns: no client says that its own has ended."""

import bisect
from collections import deque

PAUSE_S = 60.0
"""Until pauses turn out to be shorter, and at most. Most tools of agents end sooner (bench/simulator.py)."""
SHORTEST_PAUSE_S = 5.0
_KEPT, _FEWEST, _ENDED = 512, 64, 0.99
"""How many of the last pauses are looked at, from how many on they are believed, and the share of them that had ended by then
(docs/adr/0020-new-conversations-wait-for-memory.md)."""


class Pauses:
    """The last ones, in seconds."""

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._sorted: list[float] = []
        self.usual_s = PAUSE_S
        """Nearly all had ended after so long."""

    def add(self, pause_s: float) -> None:
        if len(self._last) == _KEPT:
            del self._sorted[bisect.bisect_left(self._sorted, self._last.popleft())]
        self._last.append(pause_s)
        bisect.insort(self._sorted, pause_s)
        if len(self._sorted) >= _FEWEST:
            self.usual_s = min(max(self._sorted[int(_ENDED * len(self._sorted))], SHORTEST_PAUSE_S), PAUSE_S)
