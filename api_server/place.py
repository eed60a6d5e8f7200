"""A request's place at a server: what it needs, what it got, and the wait between."""

import asyncio
import time
from dataclasses import dataclass, field

import msgspec

from api_server.address import Address
from api_server.binding import Binding
from api_server.bindings import SLICE_S, Bindings, is_aside
from api_server.picking import ANSWER, Reason
from api_server.room import Room
from api_server.sessions import Turn
from api_server.settings import Route

_NO_TURN = Turn()


class Wanted(msgspec.Struct, frozen=True):
    """What a request needs of a server."""

    route: Route
    model: str
    turn: Turn = _NO_TURN
    tried: frozenset[str] = frozenset()
    """Hosts that it was sent to, and failed at."""
    priority: int = 0
    """Of its key: the highest is the next."""

    def elsewhere(self, host: str) -> "Wanted":
        """The same, at any server but this one."""
        return msgspec.structs.replace(self, tried=self.tried | {host})

    @property
    def name(self) -> str:
        return self.route.model or self.model


class Place(msgspec.Struct, eq=False):
    """A request's place at a server."""

    address: Address
    turn: Turn
    reason: Reason
    """Why it is this server."""
    unread: int
    """Bytes of the prompt that the server has still to read."""
    model: str
    known: Binding | None = None
    """The conversation, as far as it is known."""
    coming: tuple[int, int] = (0, 0)
    """Conversations and bytes that the server will hold more, once it has read the prompt."""
    room: Room | None = None
    """Of the server; None: nobody knows."""
    reusable: int = 0
    """Tokens that the server holds of the conversation, if it has kept them."""
    answered: bool = False
    prompt_tokens: int = 0
    """As the server counted."""

    def read(self) -> None:
        """Its prompt has been read: the answer comes."""
        self.address.load -= self.unread
        self.unread = 0

    def said(self, prompt_tokens: int, completion_tokens: int) -> None:
        """What the server counted. What it wrote, it holds too."""
        self.prompt_tokens = prompt_tokens
        if self.answered and self.known is not None and not is_aside(self.turn, self.known):
            self.known.tokens = prompt_tokens + completion_tokens


@dataclass(eq=False)
class Waiter:
    """A request that waits for a place."""

    wanted: Wanted
    place: "asyncio.Future[Place]"
    limit_s: float
    """How long it waits at most."""
    home: Address | None = None
    """The server in whose line it is, and whose load it adds to."""
    ahead: int = 0
    known: Binding | None = None
    """The conversation, in the line of its server or without one."""
    needs_room: bool = False
    """Whether it waits for a server to have the memory for it."""
    came: float = field(default_factory=time.monotonic)

    def priority(self, highest: int) -> int:
        """Its key's, and after half of its time the highest of all that wait, so that it is not turned down for ever."""
        return highest if time.monotonic() - self.came >= min(SLICE_S, self.limit_s / 2) else self.wanted.priority

    def rank(self, conversations: Bindings, highest: int) -> tuple[float, ...]:
        """Which of those that wait is the next, lowest first. Those who wait for the server that holds their conversation come before those
        that need room, and of each those of the highest priority. Where nobody knows the memory, they come as they arrived."""
        if not self.wanted.route.slots or self.known is None:
            return 0, -self.priority(highest), self.came
        if not self.needs_room:
            return 0, -self.priority(highest), self.known.began
        return conversations.rank(self.known, self.wanted.priority)

    def join(self, home: Address | None, binding: Binding | None) -> bool:
        """Whether there is a line to join."""
        if home is None or binding is None:
            return False
        self.home, self.ahead = home, max(0, self.wanted.turn.size - binding.size) + ANSWER
        home.load += self.ahead
        return True

    def leave(self) -> bool:
        """Whether it was in one."""
        if self.home is None:
            return False
        self.home.load -= self.ahead
        self.home = None
        return True
