"""The servers behind a base URL: which addresses there are, what each has, and which are free.

A Service address would pin a kept-alive connection to one pod, so hosts are resolved to all pods.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from api_server.address import PROBE_S, Address, tagged
from api_server.lookup import addresses
from api_server.place import Wanted
from api_server.pools import Pool
from api_server.reading import LATE_OR_STRANGE

_AT_ONCE = 32
"""Servers that are looked at together. More would hold up requests: of 1,000 servers for 60 ms (bench/scale.py)."""

log = logging.getLogger("api_server")


@dataclass
class Servers:
    """All servers behind one base URL."""

    url: str
    max_in_flight: int
    """Requests at once to one address."""
    engine: str = "openai"
    silence_s: float = 90.0
    """A server with requests that says nothing for so long is out."""
    pool: Pool | None = None
    """They are those of others, and one address stands for all."""
    addresses: dict[str, Address] = field(default_factory=dict)
    looked: bool = False
    """Whether the host was looked up at all yet."""
    _gone: dict[str, Address] = field(default_factory=dict)
    """No longer looked up, but still at work: one that comes back has its count."""

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

    async def refresh(self, session: aiohttp.ClientSession) -> None:
        """Resolve the host and see what each address has. An address keeps its count for as long as a request of it runs."""
        # Who is behind the name of a pool is its own concern.
        found = [self.host] if self.pool is not None else await addresses(self.host, self.port)
        hosts = list(self.addresses) if found is None else found
        known = self._gone | self.addresses
        fresh = {host: known.get(host) or Address(host, self.port, pool=self.pool) for host in hosts}
        self._gone = {host: address for host, address in known.items() if host not in fresh and address.in_flight}
        turns = asyncio.Semaphore(_AT_ONCE)

        async def probe(address: Address) -> None:
            async with turns:
                await self._probe(address, session)

        await asyncio.gather(*map(probe, fresh.values()))
        self.addresses = fresh
        self.looked = True
        for address in fresh.values():
            if address.is_silent(self.silence_s) and not address.is_out():
                log.warning("%s: %s is out for %g s: silent for %g s", self.url, address.host, address.eject(), self.silence_s)

    async def _probe(self, address: Address, session: aiohttp.ClientSession) -> None:
        if self.pool is not None:
            address.answers = await self.pool.answers(session)
            return
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

    def free(self, wanted: Wanted, *, sure: bool) -> list[Address]:
        """The addresses that have the model and a place, of which no other ones are better: first those that answer, then those that hold
        the model in memory. `sure`: none that did not answer last time. When more than half are out, being out says more about the
        requests than about the servers, and is not looked at."""
        every, now, most = list(self.addresses.values()), time.monotonic(), self.max_in_flight
        out = {address for address in every if address.out_until > now}
        panic, tried = 2 * len(out) > len(every), wanted.tried
        name, digest = tagged(wanted.name), wanted.route.digest
        # A thousand servers are looked at in less than a millisecond: no calls for each that can be spared.
        free = [
            address
            for address in every
            if address.in_flight < most
            and address.in_flight < address.part
            and (panic or (address.in_flight < address.places and (not out or address not in out)))
            and (address.answers or not sure)
            and (address.store is None or address.has(name, digest))
            and (not tried or address.host not in tried)
        ]
        if len(free) < 2:
            return free
        ranks = [(not each.answers) * 4 + (panic and each in out) * 2 + (name not in each.loaded) for each in free]
        first = min(ranks)
        return [address for address, rank in zip(free, ranks, strict=True) if rank == first]

    def places(self, address: Address) -> float:
        """Requests at once that this process may have there."""
        return min(self.max_in_flight, address.part)

    def allowed(self, address: Address) -> int:
        """The same, of one that may still have to show that it is well again."""
        return int(min(self.places(address), address.places))

    def is_full(self, address: Address) -> bool:
        return address.in_flight >= self.allowed(address)

    def leave(self, host: str, for_s: float) -> None:
        """A server is to go: for so long it gets no new conversation."""
        if host in self.addresses:
            self.addresses[host].leaving_until = time.monotonic() + for_s

    def idle(self) -> dict[str, float]:
        """By host, seconds without a request of this process; those of old that still work, too."""
        return {host: round(address.idle_s(), 1) for host, address in (self._gone | self.addresses).items()}

    def failed(self, address: Address, reason: str) -> None:
        """It broke a request off, or failed on it."""
        if address.failed():
            log.warning("%s: %s is out: failed too often in a row, last with %s", self.url, address.host, reason)
