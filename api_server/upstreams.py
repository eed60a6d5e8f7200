"""The servers behind each model: which addresses there are, how busy each is, which one is next.

A Service address would pin a kept-alive connection to one pod, so hosts are resolved to all pods, and our own count of
requests in flight decides. Ollama queues without bound; the cap here is the bound.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

REFRESH_S = 2.0
_CONNECT_S = 1.0
_PENALTY_S = 2.0
"""How long an address that refused a connection is tried last."""

log = logging.getLogger("api_server")


@dataclass
class Address:
    """One server."""

    host: str
    port: int
    in_flight: int = 0
    answers: bool = True
    avoid_until: float = 0.0

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass
class Upstream:
    """All servers behind one base URL."""

    url: str
    max_in_flight: int
    addresses: dict[str, Address] = field(default_factory=dict)
    looked: bool = False
    """Whether the host was looked up at all yet."""

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    @property
    def answers(self) -> bool:
        return any(address.answers for address in self.addresses.values())

    async def refresh(self) -> None:
        """Resolve the host and see which addresses accept connections. An address keeps its count while it is resolved."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            hosts = list(dict.fromkeys(str(info[4][0]) for info in found))
        except OSError:
            hosts = []
        self.addresses = {host: self.addresses.get(host) or Address(host, self.port) for host in hosts}
        await asyncio.gather(*(self._probe(address) for address in self.addresses.values()))
        self.looked = True

    async def _probe(self, address: Address) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(address.host, address.port)
            writer.close()
            address.answers = True
        except OSError:
            address.answers = False

    def candidates(self) -> list[Address]:
        """Addresses below their cap, least busy first; those that just refused a connection last."""
        now = time.monotonic()
        free = [address for address in self.addresses.values() if address.in_flight < self.max_in_flight]
        return sorted(free, key=lambda address: (address.avoid_until > now or not address.answers, address.in_flight))

    @contextlib.contextmanager
    def claim(self, address: Address) -> Iterator[None]:
        """Count a request for as long as it runs."""
        address.in_flight += 1
        try:
            yield
        finally:
            address.in_flight -= 1

    @staticmethod
    def avoid(address: Address) -> None:
        address.avoid_until = time.monotonic() + _PENALTY_S


async def refresh_forever(upstreams: list[Upstream]) -> None:
    while True:
        for upstream in upstreams:
            before = set(upstream.addresses)
            await upstream.refresh()
            if before != set(upstream.addresses):
                log.info("%s: %s", upstream.url, ", ".join(sorted(upstream.addresses)) or "no address")
        await asyncio.sleep(REFRESH_S)
