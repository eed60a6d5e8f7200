"""The servers behind each model: which addresses there are, which one is next, and who waits for a place.

A Service address would pin a kept-alive connection to one pod, so hosts are resolved to all pods, and picking.py chooses among those that
have the model and a place. Ollama queues without bound; the cap here is this process's bound.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from api_server.address import PROBE_S, Address, tagged
from api_server.bindings import Binding, Bindings
from api_server.lookup import addresses
from api_server.picking import ANSWER, choose, stays
from api_server.place import Place, Waiter, Wanted
from api_server.reading import LATE_OR_STRANGE

REFRESH_S = 2.0
_HELD_REFRESH_S = 0.5
"""While a request waits for a server."""

log = logging.getLogger("api_server")


@dataclass
class Upstream:
    """All servers behind one base URL."""

    url: str
    max_in_flight: int
    engine: str = "openai"
    silence_s: float = 90.0
    """A server with requests that says nothing for so long is out."""
    lines: bool = False
    """Whether a turn waits for the server that holds its conversation where that is sooner than to read all of it elsewhere."""
    addresses: dict[str, Address] = field(default_factory=dict)
    looked: bool = False
    """Whether the host was looked up at all yet."""
    _gone: dict[str, Address] = field(default_factory=dict)
    """No longer looked up, but still at work: one that comes back has its count."""
    _queue: list[Waiter] = field(default_factory=list)
    """In the order in which they came."""
    _bindings: Bindings = field(default_factory=Bindings)
    last_used: float = field(default_factory=time.monotonic)
    """When a request for it came or ended last."""

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    @property
    def answers(self) -> bool:
        return any(address.answers for address in self.addresses.values())

    def serves(self, wanted: Wanted) -> bool:
        return any(
            address.answers and address.host not in wanted.tried and address.has(wanted.name, wanted.route.digest)
            for address in self.addresses.values()
        )

    def awaits(self, model: str) -> bool:
        """Whether a request waits for a place with this model."""
        return any(waiter.wanted.model == model for waiter in self._queue)

    async def refresh(self, session: aiohttp.ClientSession) -> None:
        """Resolve the host and see what each address has. An address keeps its count for as long as a request of it runs."""
        found = await addresses(self.host, self.port)
        hosts = list(self.addresses) if found is None else found
        known = self._gone | self.addresses
        fresh = {host: known.get(host) or Address(host, self.port) for host in hosts}
        self._gone = {host: address for host, address in known.items() if host not in fresh and address.in_flight}
        await asyncio.gather(*(self._probe(address, session) for address in fresh.values()))
        self.addresses = fresh
        self.looked = True
        for address in fresh.values():
            if address.is_silent(self.silence_s) and not address.is_out():
                log.warning("%s: %s is out for %g s: silent for %g s", self.url, address.host, address.eject(), self.silence_s)
        self._admit()

    async def _probe(self, address: Address, session: aiohttp.ClientSession) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                _, writer = await asyncio.open_connection(address.host, address.port)
            writer.close()
        except OSError:
            address.answers = False
            address.abilities.clear()
            return
        if self.engine == "ollama":
            # A busy server may be late with its lists; what it said before then stays.
            with contextlib.suppress(*LATE_OR_STRANGE):
                await address.look(session)
        address.answers = True

    def _free(self, wanted: Wanted, *, sure: bool) -> list[Address]:
        """The addresses that have the model and a place, of which no other ones are better: first those that answer, then those that hold
        the model in memory. `sure`: none that did not answer last time. When more than half are out, being out says more about the
        requests than about the servers, and is not looked at."""
        every, now = list(self.addresses.values()), time.monotonic()
        out = {address for address in every if address.out_until > now}
        panic = 2 * len(out) > len(every)
        name, digest, cap = wanted.name, wanted.route.digest, self.max_in_flight
        free = [
            address
            for address in every
            if address.in_flight < cap
            and (panic or (address.in_flight < address.places and address not in out))
            and address.host not in wanted.tried
            and (address.answers or not sure)
            and address.has(name, digest)
        ]
        if len(free) < 2:
            return free
        name = tagged(name)
        ranks = [(not each.answers, panic and each in out, name not in each.loaded) for each in free]
        first = min(ranks)
        return [address for address, rank in zip(free, ranks, strict=True) if rank == first]

    def _known(self, wanted: Wanted) -> tuple[bytes | None, Binding | None, Address | None]:
        """The name and the binding of a conversation, and the server that holds it, if it serves the turn once it has a place."""
        before, binding = self._bindings.find(wanted.turn) or (None, None)
        home = self.addresses.get(binding.host) if binding is not None else None
        if home is None or home.host in wanted.tried or not home.answers or home.is_out() or not home.has(wanted.name, wanted.route.digest):
            return before, binding, None
        # What Ollama has unloaded, it has forgotten.
        return before, binding, home if self.engine != "ollama" or tagged(wanted.name) in home.loaded else None

    def _is_full(self, address: Address) -> bool:
        return address.in_flight >= min(self.max_in_flight, address.places)

    def take(self, wanted: Wanted, *, sure: bool = False) -> Place | None:
        """A place at once, if there is one; release it. Nobody overtakes a request that waits for the same place. `sure`: at no server that
        took no connection last time."""
        # With lines, whoever waits has turned down every place that is free.
        if not wanted.tried and not self.lines and self.awaits(wanted.model):
            return None
        return self._claimed(wanted, sure=sure, lines=self.lines and not wanted.tried)

    async def wait(self, wanted: Wanted, limit_s: float) -> Place:
        """A place, in the order of those who wait for this model; release it. Raises TimeoutError."""
        waiter = Waiter(wanted, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self._line_up(waiter)
        self.last_used = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                return await waiter.place
        except BaseException as error:
            if waiter.place.done() and not waiter.place.cancelled():
                self.release(waiter.place.result())
            elif isinstance(error, TimeoutError) and (place := self._claimed(wanted, sure=True)) is not None:
                # Any server is better than none.
                return place
            raise
        finally:
            if waiter in self._queue:
                self._queue.remove(waiter)
            waiter.leave()

    def _line_up(self, waiter: Waiter) -> None:
        _, binding, home = self._known(waiter.wanted)
        waiter.join(home, binding)

    def release(self, place: Place) -> None:
        """Give a place back, to the first who can use it."""
        place.address.in_flight -= 1
        place.address.load -= place.unread + ANSWER
        self.last_used = time.monotonic()
        self._admit()

    @contextlib.contextmanager
    def held(self, place: Place) -> Iterator[None]:
        """Release a place at the block's end."""
        try:
            yield
        finally:
            self.release(place)

    def _claimed(self, wanted: Wanted, *, sure: bool, lines: bool = False) -> Place | None:
        """A place at the best server. None without one, and, with `lines`, where it is sooner to wait for the server that holds the
        conversation."""
        before, binding, home = self._known(wanted)
        full = home is not None and self._is_full(home)
        at_once = home is not None and binding is not None and not full and stays(wanted.turn, binding, home)
        free = [home] if at_once and home else self._free(wanted, sure=sure)
        if not free:
            return None
        if home is not None and binding is not None and full and lines:
            least = min(address.load for address in free)
            if stays(wanted.turn, binding, home, least):
                return None
        choice = choose(wanted.turn, binding, free, self._bindings.held)
        reason = "spilled" if full else choice.reason
        place = Place(choice.server, wanted.turn, reason, choice.unread, before, binding.tokens if binding else 0)
        place.address.in_flight += 1
        place.address.load += place.unread + ANSWER
        self.last_used = time.monotonic()
        return place

    def _admit(self) -> None:
        """Give free places to those who wait, in order. One who waits for a place keeps nobody waiting who can have another one."""
        for waiter in list(self._queue):
            if all(address.in_flight >= self.max_in_flight for address in self.addresses.values()):
                return
            if waiter.place.done():
                continue
            waiter.leave()
            place = self._claimed(waiter.wanted, sure=True, lines=self.lines)
            if place is None:
                self._line_up(waiter)
                continue
            self._queue.remove(waiter)
            waiter.place.set_result(place)

    def worked(self, place: Place) -> None:
        """An answer comes: the server holds the conversation now, and may have more places."""
        place.binding = self._bindings.bind(place.turn, place.address.host, place.before)
        place.address.worked(self.max_in_flight)
        self._admit()

    def failed(self, address: Address, reason: str) -> None:
        """It broke a request off, or failed on it."""
        if address.failed():
            log.warning("%s: %s is out: failed too often in a row, last with %s", self.url, address.host, reason)

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Keep the addresses as they are. Never ends."""
        while True:
            before = set(self.addresses)
            await self.refresh(session)
            if before != set(self.addresses):
                log.info("%s: %s", self.url, ", ".join(sorted(self.addresses)) or "no address")
            await asyncio.sleep(_HELD_REFRESH_S if self._queue else REFRESH_S)
