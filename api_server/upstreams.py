"""The servers behind each model: which addresses there are, which one is next, and who waits for a place.

A Service address would pin a kept-alive connection to one pod, so hosts are resolved to all pods, and our own count of
requests in flight decides. Ollama queues without bound; the cap here is this process's bound.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from api_server.address import PROBE_S, Address, tagged
from api_server.lookup import addresses
from api_server.reading import LATE_OR_STRANGE
from api_server.settings import Route

REFRESH_S = 2.0
_HELD_REFRESH_S = 0.5
"""While a request waits for a server."""

log = logging.getLogger("api_server")


@dataclass(frozen=True)
class Wanted:
    """What a request needs of a server."""

    route: Route
    model: str
    affinity: bytes = b""
    """The same for all requests of a conversation, whose prompt a server may still hold."""

    @property
    def name(self) -> str:
        return self.route.model or self.model


@dataclass(eq=False)
class _Waiter:
    wanted: Wanted
    place: "asyncio.Future[Address]"


@dataclass
class Upstream:
    """All servers behind one base URL."""

    url: str
    max_in_flight: int
    engine: str = "openai"
    silence_s: float = 90.0
    """A server with requests that says nothing for so long is out."""
    addresses: dict[str, Address] = field(default_factory=dict)
    looked: bool = False
    """Whether the host was looked up at all yet."""
    _gone: dict[str, Address] = field(default_factory=dict)
    """No longer looked up, but still at work: one that comes back has its count."""
    _queue: list[_Waiter] = field(default_factory=list)
    """In the order in which they came."""
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
        return any(address.answers and address.has(wanted.name, wanted.route.digest) for address in self.addresses.values())

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

    def _best(self, wanted: Wanted, tried: Collection[str] = (), *, sure: bool = False) -> Address | None:
        """The address that has the model and a place: first those that answer, then those that hold it in memory, then the one that the
        conversation was on, unless another is less busy by two, then the least busy. `sure`: none that did not answer last time.
        When more than half are out, being out says more about the requests than about the servers, and is not looked at."""
        every = list(self.addresses.values())
        out = [address for address in every if address.is_out()]
        panic = 2 * len(out) > len(every)
        free = [
            address
            for address in every
            if address.host not in tried
            and address.in_flight < (self.max_in_flight if panic else min(self.max_in_flight, address.places))
            and address.has(wanted.name, wanted.route.digest)
            and (panic or address not in out)
            and (address.answers or not sure)
        ]
        if len(free) < 2:
            return free[0] if free else None
        ranked = [((not each.answers, panic and each.is_out(), tagged(wanted.name) not in each.loaded), each) for each in free]
        first = min(rank for rank, _ in ranked)
        equals = [address for rank, address in ranked if rank == first]
        least = min(address.in_flight for address in equals)
        near = [address for address in equals if address.in_flight <= least + 1]
        favourite = min(equals, key=lambda each: hashlib.blake2b(wanted.affinity + each.host.encode(), digest_size=8).digest())
        return favourite if favourite in near else min(near, key=lambda each: each.in_flight)

    def take(self, wanted: Wanted, tried: Collection[str] = (), *, sure: bool = False) -> Address | None:
        """A place at once, if there is one; release it. Nobody overtakes a request that waits for the same model. `sure`: at no server that
        took no connection last time."""
        if not tried and self.awaits(wanted.model):
            return None
        return self._claimed(self._best(wanted, tried, sure=sure))

    async def wait(self, wanted: Wanted, limit_s: float) -> Address:
        """A place, in the order of those who wait for this model; release it. Raises TimeoutError."""
        waiter = _Waiter(wanted, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self.last_used = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                return await waiter.place
        except BaseException:
            if waiter.place.done() and not waiter.place.cancelled():
                self.release(waiter.place.result())
            raise
        finally:
            if waiter in self._queue:
                self._queue.remove(waiter)

    def release(self, address: Address) -> None:
        """Give a place back, to the first who can use it."""
        address.in_flight -= 1
        self.last_used = time.monotonic()
        self._admit()

    @contextlib.contextmanager
    def held(self, address: Address) -> Iterator[None]:
        """Release a place at the block's end."""
        try:
            yield
        finally:
            self.release(address)

    def _claimed(self, address: Address | None) -> Address | None:
        if address is not None:
            address.in_flight += 1
            self.last_used = time.monotonic()
        return address

    def _admit(self) -> None:
        """Give free places to those who wait, in order; one whose model has no place keeps no other model waiting."""
        full: set[str] = set()
        for waiter in list(self._queue):
            if waiter.wanted.model in full or waiter.place.done():
                continue
            address = self._claimed(self._best(waiter.wanted, sure=True))
            if address is None:
                full.add(waiter.wanted.model)
                continue
            self._queue.remove(waiter)
            waiter.place.set_result(address)

    def worked(self, address: Address) -> None:
        """An answer came from it: there may be more places now."""
        address.worked(self.max_in_flight)
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
