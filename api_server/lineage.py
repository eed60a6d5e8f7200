"""Which conversation waits for which: an agent has started another one, and goes on when that has ended."""

from collections.abc import Iterable, Mapping

from api_server.binding import Binding
from api_server.sessions import Turn

_DEEPEST = 8
"""Agents that wait for each other, one for the next."""
_AGAIN_S = 1.0


class Lineage:
    """`known`: all conversations by name."""

    def __init__(self, known: Mapping[bytes, Binding]) -> None:
        self._known = known
        self._looked = float("-inf")

    def holds(self, name: bytes) -> bool:
        """Whether a server holds the conversation of that name."""
        return (found := self._known.get(name)) is not None and bool(found.host)

    def began(self, turn: Turn, now: float) -> float:
        """When a new conversation began: with the one that waits for it, so that both end before others begin."""
        parent = self._known.get(turn.parent)
        return now if parent is None else parent.began

    def helps(self, parent: bytes, now: float) -> None:
        """An agent asks or was answered: the one that waits for it will go on, and so will the one that waits for that."""
        for _ in range(_DEEPEST):
            if (waits := self._known.get(parent)) is None:
                return
            waits.helped, parent = now, waits.parent

    def help_from_work(self, working: Iterable[Binding], now: float) -> None:
        """The same of all that are at work: a turn may take minutes. Looked at once a second."""
        if now >= self._looked + _AGAIN_S:
            self._looked = now
            for binding in working:
                self.helps(binding.parent, now)
