"""How long conversations pause between two turns: no client says that its own has ended."""

import bisect
from collections import deque

PAUSE_S = 60.0
"""Until pauses turn out to be shorter, and at most. Most tools of agents end sooner (bench/simulator.py)."""
SHORTEST_PAUSE_S = 5.0
_KEPT, _MARGIN = 512, 1.5
"""How many of the last pauses are looked at, and by what part longer the next ones may be."""
_USUAL, _MOST = (0.99, 64), (0.9, 16)
"""The share of pauses that had ended by then, and from how many on they are believed; measured for docs/adr/0020."""


class Pauses:
    """The last ones of one key, in seconds."""

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._sorted: list[float] = []
        self.usual_s = PAUSE_S
        """Nearly all had ended after so long."""
        self.most_s = PAUSE_S
        """Most had ended after so long."""

    def add(self, pause_s: float) -> None:
        if len(self._last) == _KEPT:
            del self._sorted[bisect.bisect_left(self._sorted, self._last.popleft())]
        self._last.append(pause_s)
        bisect.insort(self._sorted, pause_s)
        self.usual_s, self.most_s = self._within(*_USUAL), self._within(*_MOST)

    def _within(self, share: float, fewest: int) -> float:
        if len(self._sorted) < fewest:
            return PAUSE_S
        return min(max(_MARGIN * self._sorted[int(share * len(self._sorted))], SHORTEST_PAUSE_S), PAUSE_S)


class OfOwners:
    """Of each key's conversations: nobody's haste takes memory from others."""

    def __init__(self) -> None:
        self._known: dict[bytes, Pauses] = {}
        self._none = Pauses()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, owner: bytes) -> Pauses:
        return self._known.get(owner, self._none)

    def add(self, owner: bytes, pause_s: float) -> None:
        self._known.setdefault(owner, Pauses()).add(pause_s)

    def forget(self, owner: bytes) -> None:
        self._known.pop(owner, None)
