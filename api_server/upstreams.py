"""Who gets a place at the servers behind a base URL, and who waits for one.

Ollama queues without bound; the cap here is this process's bound.
"""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import aiohttp

from api_server.address import Address, tagged
from api_server.binding import Binding
from api_server.bindings import SMALL, Bindings, is_aside
from api_server.peers import Busy, Told, Untold
from api_server.picking import ANSWER, Choice, choose, staying, stays
from api_server.place import Place, Waiter, Wanted
from api_server.room import Room
from api_server.servers import Servers
from api_server.settings import Route

REFRESH_S = 2.0
_HELD_REFRESH_S = 0.5
"""While a request waits for a server."""

log = logging.getLogger("api_server")


@dataclass
class Upstream(Servers):
    """All servers behind one base URL, and their conversations."""

    lines: bool = False
    """Whether a turn waits for the server that holds its conversation where that is sooner than to read all of it elsewhere."""
    _queue: list[Waiter] = field(default_factory=list)
    """In the order in which they came."""
    conversations: defaultdict[str, Bindings] = field(default_factory=lambda: defaultdict(Bindings))
    """With each model."""
    last_used: float = field(default_factory=time.monotonic)
    """When a request for it came or ended last."""
    told: defaultdict[str, Untold] | None = None
    """By model, what other API servers have still to hear of conversations. None: there is nobody to tell."""

    def awaits(self, model: str) -> bool:
        """Whether a request waits for a place with this model."""
        return any(waiter.wanted.model == model for waiter in self._queue)

    def is_full_of(self, wanted: Wanted, most: int) -> bool:
        """Whether `most` requests like this one wait: those of conversations that servers hold go on, however many others would begin."""
        alike = [each.wanted for each in self._queue if each.wanted.model == wanted.model]
        return len(alike) >= most and [self._goes_on(each) for each in alike].count(self._goes_on(wanted)) >= most

    def _goes_on(self, wanted: Wanted) -> bool:
        """Whether a server holds the conversation, or the one whose agent waits for it."""
        return self._known(wanted)[1] is not None or self.conversations[wanted.model].lineage.holds(wanted.turn.parent)

    def short(self) -> list[Wanted]:
        """What waits and another server could take: what is in no server's line."""
        return [waiter.wanted for waiter in self._queue if waiter.home is None]

    async def refresh(self, session: aiohttp.ClientSession) -> None:
        await super().refresh(session)
        self.admit()

    def _known(self, wanted: Wanted) -> tuple[Binding | None, Address | None]:
        """A conversation, and the server that holds it, if it serves the turn once it has a place."""
        binding = self.conversations[wanted.model].find(wanted.turn)
        home = self.addresses.get(binding.host) if binding is not None else None
        if home is None or home.host in wanted.tried or not home.answers or home.is_out() or not home.has(wanted.name, wanted.route.digest):
            return binding, None
        # What Ollama has unloaded, it has forgotten.
        return binding, home if self.engine != "ollama" or tagged(wanted.name) in home.loaded else None

    def _room(self, wanted: Wanted) -> Room | None:
        """Of each server. None: nobody knows, or this turn takes none of it: what is as small as an answer, or failed elsewhere, is let
        through."""
        return self.kept(wanted.route, wanted.model) if wanted.turn.goes_on and not wanted.tried and wanted.turn.size > SMALL else None

    def kept(self, route: Route, model: str) -> Room | None:
        """What each server keeps of conversations with a model. None: nobody knows."""
        per_token = self.conversations[model].density.bytes_per_token
        return Room(route.slots, int(route.cached_tokens * per_token)) if self.lines and route.slots else None

    def take(self, wanted: Wanted, *, sure: bool = False) -> Place | None:
        """A place at once, if there is one; release it. Nobody overtakes a request that waits for the same place. `sure`: at no server that
        took no connection last time."""
        if not wanted.tried:
            self.conversations[wanted.model].came(wanted.turn)
        # With lines, whoever waits for a place has turned down every one that is free.
        if not wanted.tried and not self.lines and self.awaits(wanted.model):
            return None
        if self._queue and any(each.needs_room and each.wanted.model == wanted.model for each in self._queue) and self._needs_room(wanted):
            return None
        return self._claimed(wanted, sure=sure, lines=self.lines and not wanted.tried)

    async def wait(self, wanted: Wanted, limit_s: float) -> Place:
        """A place, in the order of those who wait for this model; release it. Raises TimeoutError."""
        waiter = Waiter(wanted, asyncio.get_running_loop().create_future(), limit_s)
        self._queue.append(waiter)
        self._line_up(waiter)
        if waiter.needs_room:
            # Its conversation may be older than those that wait.
            self.admit()
        self.last_used = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                return await waiter.place
        except BaseException as error:
            if waiter.place.done() and not waiter.place.cancelled():
                self.release(waiter.place.result())
            elif isinstance(error, TimeoutError) and (place := self._claimed(wanted, sure=True)) is not None:
                # Any server is better than none, but one that would have to forget others for it.
                return place
            raise
        finally:
            if waiter in self._queue:
                self._queue.remove(waiter)
            self._leave(waiter)

    def _needs_room(self, wanted: Wanted) -> bool:
        return self._room(wanted) is not None and self._known(wanted)[1] is None

    def _line_up(self, waiter: Waiter) -> None:
        conversations = self.conversations[waiter.wanted.model]
        waiter.known, home = self._known(waiter.wanted)
        waiter.needs_room = home is None and self._room(waiter.wanted) is not None
        if waiter.needs_room:
            # When it asks again after a 429, it has waited for longest.
            waiter.known = conversations.meet(waiter.wanted.turn)
        elif waiter.join(home, waiter.known):
            conversations.works(waiter.known, 1, in_line=True)

    def _leave(self, waiter: Waiter) -> None:
        if waiter.leave():
            self.conversations[waiter.wanted.model].works(waiter.known, -1, in_line=True)

    def release(self, place: Place) -> None:
        """Give a place back, to the first who can use it."""
        place.address.in_flight -= 1
        place.address.load -= place.unread + ANSWER
        conversations = self.conversations[place.model]
        conversations.works(place.known, -1)
        if not place.answered:
            conversations.coming.expect(place.address.host, *(-each for each in place.coming))
        elif place.prompt_tokens:
            conversations.density.learn(place.turn.size, place.prompt_tokens)
            self._tell(place, place.known.name if place.known else b"")
        self.last_used = place.address.used = time.monotonic()
        self.admit()

    def _claimed(self, wanted: Wanted, *, sure: bool, lines: bool = False) -> Place | None:
        """A place at the best server. None without one; where nobody has the memory for the conversation; and, with `lines`, where it is
        sooner to wait for the server that holds it."""
        conversations = self.conversations[wanted.model]
        binding, home = self._known(wanted)
        room = self._room(wanted)
        full = home is not None and self.is_full(home)
        if home is not None and binding is not None and not full and (room or stays(wanted.turn, binding, home)):
            choice = staying(wanted.turn, binding, home)
        elif (choice := self._chosen(wanted, binding, home, room, sure=sure, waits=full and lines)) is None:
            return None
        coming = int(bool(wanted.turn.own) and choice.server is not home), choice.unread
        place = Place(choice.server, wanted.turn, "spilled" if full else choice.reason, choice.unread, wanted.model, binding, coming, room)
        place.reusable = binding.tokens if binding and not is_aside(wanted.turn, binding) else 0
        place.address.in_flight += 1
        place.address.load += place.unread + ANSWER
        conversations.works(binding, 1)
        conversations.coming.expect(place.address.host, *place.coming)
        self.last_used = place.address.used = time.monotonic()
        return place

    def _chosen(
        self, wanted: Wanted, binding: Binding | None, home: Address | None, room: Room | None, *, sure: bool, waits: bool
    ) -> Choice[Address] | None:
        """The best server that is free, where the one that holds the conversation is not, or has much ahead. None as for `_claimed`."""
        if not (free := self.free(wanted, sure=sure)):
            return None
        # Where memory is known, a turn that moves costs two conversations their prompts: its own, and the one that makes room.
        if waits and home and binding and (room or stays(wanted.turn, binding, home, min(address.load for address in free))):
            return None
        conversations = self.conversations[wanted.model]
        if room:
            size = wanted.turn.size
            free = [each for each in free if each is home or conversations.has_room(each.host, size, room, binding)]
        if not free:
            return None
        now = time.monotonic()
        not_leaving = [each for each in free if each.leaving_until <= now or each is home]
        return choose(wanted.turn, binding, not_leaving or free, conversations.held)

    def admit(self) -> None:
        """Give free places to those who wait, in order. One who waits for a place keeps nobody waiting who can have another one."""
        if not self._queue:
            return
        short: set[str] = set()
        highest = max(waiter.wanted.priority for waiter in self._queue)
        for waiter in sorted(self._queue, key=lambda each: each.rank(self.conversations[each.wanted.model], highest)):
            if all(address.in_flight >= self.places(address) for address in self.addresses.values()):
                return
            # Room that is too little for one conversation is kept for it.
            if waiter.place.done() or (waiter.needs_room and waiter.wanted.model in short):
                continue
            self._leave(waiter)
            place = self._claimed(waiter.wanted, sure=True, lines=self.lines)
            if place is None:
                self._line_up(waiter)
                short |= {waiter.wanted.model} if waiter.needs_room else set()
                continue
            self._queue.remove(waiter)
            waiter.place.set_result(place)

    def worked(self, place: Place) -> None:
        """An answer comes: the server holds the conversation now, and may have more places."""
        conversations = self.conversations[place.model]
        conversations.coming.expect(place.address.host, *(-each for each in place.coming))
        before = place.known.name if place.known else b""
        binding = conversations.bind(place.turn, place.address.host, place.known, place.room)
        if binding is not place.known:
            conversations.works(place.known, -1)
            conversations.works(binding, 1)
        place.known, place.answered = binding, True
        self._tell(place, before)
        place.address.worked(self.max_in_flight)
        self.admit()

    def _tell(self, place: Place, before: bytes) -> None:
        if self.told is not None and (known := place.known) is not None and known.host:
            self.told[place.model].add(Told(before, known.name, known.host, known.size, known.owner, known.tokens, known.parent))

    def busy(self) -> dict[str, Busy]:
        """By host, what others must leave for this API server."""
        lines = Counter(waiter.home.host for waiter in self._queue if waiter.home is not None)
        anywhere = sum(waiter.home is None and not waiter.needs_room for waiter in self._queue)
        return {
            host: Busy(address.in_flight, lines[host] + anywhere, max(0, address.load - address.load_elsewhere))
            for host, address in self.addresses.items()
            if address.in_flight or lines[host] or anywhere
        }

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Keep the addresses as they are. Never ends."""
        while True:
            before = set(self.addresses)
            await self.refresh(session)
            if before != set(self.addresses):
                log.info("%s: %s", self.url, ", ".join(sorted(self.addresses)) or "no address")
            await asyncio.sleep(_HELD_REFRESH_S if self._queue else REFRESH_S)
