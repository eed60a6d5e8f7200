"""A request's place at a server: what it needs, and what it got."""

from dataclasses import dataclass

from api_server.address import Address
from api_server.bindings import Binding
from api_server.picking import Reason
from api_server.sessions import Turn
from api_server.settings import Route

_NO_TURN = Turn()


@dataclass(frozen=True)
class Wanted:
    """What a request needs of a server."""

    route: Route
    model: str
    turn: Turn = _NO_TURN

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
