"""One server: what it holds, how busy it is, and how well it answers."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from api_server.abilities import Abilities
from api_server.pools import Pool
from api_server.reading import document

PROBE_S = 1.0
_FAILURES = 5
"""In a row, after which a server is out. Envoy's outlier detection has the same number."""
_OUT_S, _LONGEST_OUT_S = 10.0, 300.0
"""How long it is out the first time; twice as long each time after that."""


async def _listing(session: aiohttp.ClientSession, url: str) -> dict[str, dict[str, Any]]:
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=PROBE_S), allow_redirects=False) as response:
        return {str(entry["name"]): dict(entry) for entry in (await document(response))["models"]}


@dataclass(eq=False)
class Address:
    """One server."""

    host: str
    port: int
    in_flight: int = 0
    load: int = 0
    """Work that it has ahead of it, in bytes of prompt (picking.py)."""
    load_elsewhere: int = 0
    """The part of it that other API servers sent."""
    part: float = math.inf
    """Requests at once that are ours, where API servers share its places."""
    answers: bool = True
    """Whether it takes connections."""
    store: Mapping[str, Mapping[str, Any]] | None = None
    """Ollama's own word on the models of its store, by name; None: not known, or not asked."""
    loaded: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """And on those in memory."""
    abilities: dict[tuple[str, str], Abilities] = field(default_factory=dict)
    """What each model can do here, by name and digest. Forgotten when the server goes, because another version may come in its place."""
    silent_until: float = 0.0
    """It did not say what a model can do, and is not asked again before."""
    streams: int = 0
    """Answers that have begun to come in parts, and have not ended."""
    heard: float = 0.0
    """When a byte of any answer came last."""
    failures: int = 0
    """In a row."""
    ejections: int = 0
    """Since it last had all of its places."""
    out_until: float = 0.0
    used: float = field(default_factory=time.monotonic)
    """When a request for it came or ended last."""
    leaving_until: float = 0.0
    """It is to go, and gets no new conversation before, where another one will do."""
    places: float = math.inf
    """Requests that it gets at once: one after it was out, twice as many after each answer."""
    pool: Pool | None = None
    """It stands for servers of others."""

    @property
    def url(self) -> str:
        return base_url(self.host, self.port)

    async def look(self, session: aiohttp.ClientSession) -> None:
        """Ask an Ollama what it has. Raises one of reading.LATE_OR_STRANGE."""
        store = await _listing(session, f"{self.url}/api/tags")
        self.loaded = await _listing(session, f"{self.url}/api/ps")
        self.store = store

    def has(self, name: str, digest: str) -> bool:
        """Whether it has the model, as far as that is known, in the version of the digest where one is given."""
        if self.store is None:
            return True
        entry = self.store.get(tagged(name))
        return entry is not None and digest in ("", entry.get("digest"))

    def is_out(self) -> bool:
        """Whether it gets no requests, because it failed or was silent."""
        return self.out_until > time.monotonic()

    def idle_s(self) -> float:
        """Seconds without a request of this process."""
        return 0.0 if self.in_flight else time.monotonic() - self.used

    def spoke(self) -> None:
        """A byte of an answer came."""
        self.heard = time.monotonic()

    def worked(self, cap: int) -> None:
        """An answer came: it is in again, with more places, up to all."""
        self.spoke()
        self.failures, self.out_until = 0, 0.0
        if self.places < cap:
            self.places *= 2
        if self.places >= cap:
            self.places, self.ejections = math.inf, 0

    def failed(self) -> bool:
        """Count a failure. True when that puts it out."""
        self.failures += 1
        if self.failures < _FAILURES:
            return False
        self.eject()
        return True

    @contextlib.contextmanager
    def streaming(self, read: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """What the block calls at the first part of a streamed answer: it counts the stream as begun, until the block ends, and calls
        `read`."""
        begun = False

        def begin() -> None:
            nonlocal begun
            begun = True
            self.streams += 1
            read()

        try:
            yield begin
        finally:
            self.streams -= begun

    def is_silent(self, patience_s: float) -> bool:
        """Whether streams have begun, and nothing came of any answer for so long. A long prompt, or an answer that is no stream, may take
        longer than any patience, and shows nothing meanwhile."""
        return self.streams > 0 and time.monotonic() - self.heard > patience_s

    def eject(self) -> float:
        """Put it out. The seconds for which."""
        out_s = min(_OUT_S * 2**self.ejections, _LONGEST_OUT_S)
        self.ejections += 1
        self.failures, self.places = 0, 1
        self.out_until = time.monotonic() + out_s
        return out_s


def base_url(host: str, port: int) -> str:
    """Of a server at an address of either family, or at a name."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def tagged(name: str) -> str:
    """A model's name as Ollama lists it."""
    return name if ":" in name else f"{name}:latest"
