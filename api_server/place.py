"""A request's place at a server: what it needs, what it got, and the wait between."""

import asyncio
from dataclasses import dataclass, replace

from api_server.address import Address
from api_server.bindings import Binding
from api_server.picking import ANSWER, Reason
from api_server.sessions import Turn
from api_server.settings import Route

_NO_TURN = Turn()


@dataclass(frozen=True)
class Wanted:
    """What a request needs of a server."""

    route: Route
    model: str
    turn: Turn = _NO_TURN
    tried: frozenset[str] = frozenset()
    """Hosts that it was sent to, and failed at."""

    def elsewhere(self, host: str) -> "Wanted":
        """The same, at any server but this one."""
        return replace(self, tried=self.tried | {host})

    @property
    def name(self) -> str:
        return self.route.model or self.model


@dataclass(eq=False)
class Place:
    """A request's place at a server."""

    address: Address
    turn: Turn
    reason: Reason
    """Why it is this server."""
    unread: int
    """Bytes of the prompt that the server has still to read."""
    before: bytes | None = None
    """The name under which the conversation was known."""
    reusable: int = 0
    """Tokens that the server holds of the conversation, if it has kept them."""
    binding: Binding | None = None
    """From this turn on."""

    def read(self) -> None:
        """Its prompt has been read: the answer comes."""
        self.address.load -= self.unread
        self.unread = 0


@dataclass(eq=False)
class Waiter:
    """A request that waits for a place."""

    wanted: Wanted
    place: "asyncio.Future[Place]"
    home: Address | None = None
    """The server in whose line it is, and whose load it adds to."""
    ahead: int = 0

    def join(self, home: Address | None, binding: Binding | None) -> None:
        if home is not None and binding is not None:
            self.home, self.ahead = home, max(0, self.wanted.turn.size - binding.size) + ANSWER
            home.load += self.ahead

    def leave(self) -> None:
        if self.home is not None:
            self.home.load -= self.ahead
            self.home = None
