"""API servers agree: each says on a stream of the cache server once a second what it does, and hears the others.

No request waits for it. A cache server that is slow, full, wrong or gone leaves each API server with its share (peers.py), and with the
conversations that it knows itself.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from api_server.bindings import LEASE_S
from api_server.cache import STRANGE, connect
from api_server.limits import Limits
from api_server.peers import Peers, Talk, Untold, Word
from api_server.settings import Settings
from api_server.upstreams import Upstream

STREAM = "gateways:1"
"""The number is that of the form of what stands in it."""
PERIOD_S = 1.0
_ROUND_S = 1.0
"""Longest time for one exchange."""
_PAGE = 500
"""Words that are read at once."""
_LONGEST = 2 * 2**20
"""Bytes of a word; a longer one is none of ours."""
_MOST_TURNS = 2000
"""That are told at once, of each model; the newest count."""

log = logging.getLogger("api_server")
_WORD = msgspec.msgpack.Decoder(Word)
_ENCODER = msgspec.msgpack.Encoder()


class Settler:
    """Tells and hears. `is_draining`: whether this process takes no more requests. Raises SettingsError without the password's file."""

    def __init__(
        self, settings: Settings, upstreams: Mapping[str, Upstream], limits: Limits, peers: Peers, is_draining: Callable[[], bool]
    ) -> None:
        self._routes, self._upstreams, self._limits, self._peers = settings.routes, upstreams, limits, peers
        self._is_draining = is_draining
        self._client = connect(settings, _ROUND_S)
        self._last = 0, 0
        """Of the stream, what was read."""
        self._up: bool | None = None
        for upstream in upstreams.values():
            upstream.told = defaultdict(lambda: Untold(_MOST_TURNS))

    async def run(self) -> None:
        """Never ends."""
        while True:
            # Outside: a fault of ours is none of the cache server's.
            untold = self._limits.untold()
            word = _ENCODER.encode(self._word(untold))
            try:
                await self._round(word, untold)
                self._is_up(None)
            except STRANGE as error:
                self._is_up(error)
                with contextlib.suppress(*STRANGE):
                    await self._client.connection_pool.disconnect()
            self.divide()
            await asyncio.sleep(PERIOD_S)

    def _is_up(self, error: BaseException | None) -> None:
        if self._up != (error is None):
            if error is None:
                log.info("the cache server answers: limits and conversations are those of %d API servers", self._peers.count)
            else:
                log.warning("the cache server does not: %s; this API server keeps to its share", type(error).__name__)
        self._up = error is None

    async def _round(self, word: bytes, untold: Mapping[str, tuple[int, int]]) -> None:
        oldest = max(0, self._last[0] - int(1000 * LEASE_S))
        async with asyncio.timeout(_ROUND_S):
            added: Any = await self._client.xadd(STREAM, {"w": word}, minid=oldest, approximate=True)
        self._limits.told(untold)
        now = _id(added)
        if now < self._last:
            # Another server, or another clock.
            self._last = 0, 0
        while await self._heard(now):
            pass
        self._peers.settled()

    async def _heard(self, now: tuple[int, int]) -> bool:
        """Read a page. Whether there may be more."""
        async with asyncio.timeout(_ROUND_S):
            found: Any = await self._client.xread({STREAM: f"{self._last[0]}-{self._last[1]}"}, count=_PAGE)
        words = found[0][1] if found else []
        for entry, fields in words:
            self._last = _id(entry)
            data = fields.get(b"w", b"")
            # What is no word of ours may be that of another version.
            with contextlib.suppress(msgspec.MsgspecError):
                if len(data) <= _LONGEST:
                    self.hear(_WORD.decode(data), max(0.0, (now[0] - self._last[0]) / 1000))
        return len(words) == _PAGE

    def hear(self, word: Word, age_s: float) -> None:
        """Take in what another API server said `age_s` seconds ago."""
        if word.gateway == self._peers.own:
            return
        self._peers.hear(word, age_s)
        self._limits.hear(word.used, age_s)
        for model, talk in word.models.items():
            if (route := self._routes.get(model)) is not None:
                upstream = self._upstreams[route.url]
                upstream.conversations[model].hear(talk, upstream.kept(route, model), age_s)

    def divide(self) -> None:
        """Take the part of each server's places that is ours, and count what others sent there."""
        peers, second = self._peers, self._last[0] / 1000
        for url, upstream in self._upstreams.items():
            parts = peers.parts(url, list(upstream.addresses), upstream.max_in_flight, second)
            for host, address in upstream.addresses.items():
                elsewhere = peers.load(url, host)
                address.load += elsewhere - address.load_elsewhere
                address.load_elsewhere, address.part = elsewhere, parts[host]
            for model, conversations in upstream.conversations.items():
                conversations.coming.elsewhere = peers.coming(model)
            upstream.admit()

    def _word(self, untold: Mapping[str, tuple[int, int]]) -> Word:
        return Word(
            self._peers.own,
            self._is_draining(),
            self._limits.at_once(),
            dict(untold),
            {url: upstream.busy() for url, upstream in self._upstreams.items()},
            {model: self._talk(model) for model, route in self._routes.items() if model in self._upstreams[route.url].conversations},
        )

    def _talk(self, model: str) -> Talk:
        """Its turns count as told: when nobody hears them, a conversation is read once more than it would have been."""
        upstream = self._upstreams[self._routes[model].url]
        untold = upstream.told.pop(model, None) if upstream.told is not None else None
        return upstream.conversations[model].talk(untold.turns() if untold else ())


def _id(entry: bytes) -> tuple[int, int]:
    """Of an entry of a stream: milliseconds of the server's clock, and a number. Raises ValueError."""
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)
