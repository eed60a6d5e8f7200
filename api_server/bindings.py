"""Which server holds the prompt of which conversation."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from api_server.sessions import Turn

LEASE_S = 1800.0
"""After so long without a turn, a conversation counts as ended. Agents wait minutes for tools and people; NVIDIA's Dynamo keeps as long."""
MOST = 65_536
"""Conversations that one process knows: about 20 MiB. Beyond it, the one that was silent for longest is forgotten."""


@dataclass(slots=True)
class Binding:
    """A conversation's server, and what it holds of it."""

    host: str
    size: int
    """Bytes of prompt."""
    seen: float
    """When its last turn was answered, by the monotonic clock."""
    tokens: int = 0
    """Of prompt and answer together, as far as the server said."""


class Bindings:
    """The conversations of one kind of server, in the order of their last turns."""

    def __init__(self, most: int = MOST, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._lease_s, self._clock = most, lease_s, clock
        self._known: OrderedDict[bytes, Binding] = OrderedDict()
        self.held: dict[str, int] = {}
        """Bytes of prompt of all conversations that are bound to a host."""

    def __len__(self) -> int:
        return len(self._known)

    def find(self, turn: Turn) -> tuple[bytes, Binding] | None:
        """The longest part of the conversation that a server holds, and its name."""
        self._expire()
        return next(((name, self._known[name]) for name in turn.known if name in self._known), None)

    def bind(self, turn: Turn, host: str, before: bytes | None) -> Binding | None:
        """A server has read a turn. `before`: the name under which `find` knew the conversation, which it has no longer. None when the turn
        is no part of a conversation."""
        if not turn.own:
            return None
        for name in {turn.own, before}:
            if name is not None and name in self._known:
                self._drop(name)
        binding = self._known[turn.own] = Binding(host, turn.size, self._clock())
        self.held[host] = self.held.get(host, 0) + turn.size
        if len(self._known) > self._most:
            self._drop(next(iter(self._known)))
        return binding

    def _expire(self) -> None:
        oldest = self._clock() - self._lease_s
        while self._known and next(iter(self._known.values())).seen < oldest:
            self._drop(next(iter(self._known)))

    def _drop(self, name: bytes) -> None:
        binding = self._known.pop(name)
        left = self.held[binding.host] - binding.size
        if left > 0:
            self.held[binding.host] = left
        else:
            # A server that went must not be remembered for ever.
            del self.held[binding.host]
