"""The servers behind each model: which addresses there are, what each holds, how busy it is, which one is next.

A Service address would pin a kept-alive connection to one pod, so hosts are resolved to all pods, and our own count of
requests in flight decides. Ollama queues without bound; the cap here is the bound.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from api_server.abilities import Abilities
from api_server.lookup import addresses
from api_server.settings import Route

REFRESH_S = 2.0
_HELD_REFRESH_S = 0.5
"""While a request waits for a server."""
_PROBE_S = 1.0
_PENALTY_S = 2.0
"""How long an address that refused a connection is tried last."""

LATE_OR_STRANGE = (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError)

log = logging.getLogger("api_server")


async def _listing(session: aiohttp.ClientSession, url: str) -> dict[str, dict[str, Any]]:
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=_PROBE_S)) as response:
        response.raise_for_status()
        return {entry["name"]: entry for entry in (await response.json())["models"]}


@dataclass
class Address:
    """One server."""

    host: str
    port: int
    in_flight: int = 0
    answers: bool = True
    avoid_until: float = 0.0
    store: Mapping[str, Mapping[str, Any]] | None = None
    """Ollama's own word on the models of its store, by name; None: not known, or not asked."""
    loaded: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """And on those in memory."""
    abilities: dict[tuple[str, str], Abilities] = field(default_factory=dict)
    """What each model can do here, by name and digest. Forgotten when the server goes, because another version may come in its place."""
    silent_until: float = 0.0
    """It did not say what a model can do, and is not asked again before."""

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def look(self, session: aiohttp.ClientSession) -> None:
        """Ask an Ollama what it has. Raises what a server that is late, or no Ollama, makes of it."""
        store = await _listing(session, f"{self.url}/api/tags")
        self.loaded = await _listing(session, f"{self.url}/api/ps")
        self.store = store

    def has(self, name: str, digest: str) -> bool:
        """Whether it has the model, as far as that is known, in the version of the digest where one is given."""
        if self.store is None:
            return True
        entry = self.store.get(tagged(name))
        return entry is not None and digest in ("", entry.get("digest"))


def tagged(name: str) -> str:
    """A model's name as Ollama lists it."""
    return name if ":" in name else f"{name}:latest"


@dataclass
class Upstream:
    """All servers behind one base URL."""

    url: str
    max_in_flight: int
    engine: str = "openai"
    addresses: dict[str, Address] = field(default_factory=dict)
    looked: bool = False
    """Whether the host was looked up at all yet."""
    _gone: dict[str, Address] = field(default_factory=dict)
    """No longer looked up, but still at work: one that comes back has its count."""
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

    def serves(self, route: Route, model: str) -> bool:
        return any(address.answers and address.has(route.model or model, route.digest) for address in self.addresses.values())

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

    async def _probe(self, address: Address, session: aiohttp.ClientSession) -> None:
        try:
            async with asyncio.timeout(_PROBE_S):
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

    def candidates(self, route: Route, model: str, affinity: bytes = b"") -> list[Address]:
        """Addresses that have the model and are below their cap. First those that answer, then those that hold it in memory, then
        the least busy; among equals the same one for the same `affinity`, because it may still hold the conversation's prompt."""
        now = time.monotonic()
        name = route.model or model
        free = [
            address for address in self.addresses.values() if address.in_flight < self.max_in_flight and address.has(name, route.digest)
        ]  # fmt: skip
        return sorted(
            free,
            key=lambda address: (
                address.avoid_until > now or not address.answers,
                tagged(name) not in address.loaded,
                address.in_flight,
                hashlib.blake2b(affinity + address.host.encode(), digest_size=8).digest(),
            ),
        )

    @contextlib.contextmanager
    def claim(self, address: Address) -> Iterator[None]:
        """Count a request for as long as it runs."""
        address.in_flight += 1
        self.last_used = time.monotonic()
        try:
            yield
        finally:
            address.in_flight -= 1
            self.last_used = time.monotonic()

    @staticmethod
    def avoid(address: Address) -> None:
        address.avoid_until = time.monotonic() + _PENALTY_S


async def refresh_forever(upstreams: list[Upstream], session: aiohttp.ClientSession, is_awaited: Callable[[], bool]) -> None:
    while True:
        for upstream in upstreams:
            before = set(upstream.addresses)
            await upstream.refresh(session)
            if before != set(upstream.addresses):
                log.info("%s: %s", upstream.url, ", ".join(sorted(upstream.addresses)) or "no address")
        await asyncio.sleep(_HELD_REFRESH_S if is_awaited() else REFRESH_S)
