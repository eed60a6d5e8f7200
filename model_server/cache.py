"""Exact-match answers on a Redis-compatible server. It may be slow, down or wrong; the only effect is a bypass."""

import asyncio
import hashlib
import json
import logging
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio
import redis.exceptions

log = logging.getLogger("model_server")
BUDGET_S = 0.05
"""What a look-up may cost a request: less than a tenth of the shortest answer."""
TTL_S = 24 * 3600
_PAUSE_S = 5.0
"""After a failure nobody asks again for this long."""
_TIME, _LONGEST_US = struct.Struct(">I"), 3600 * 10**6
"""Microseconds that stand before an answer: what it took to make. Of one that took longer than an hour, an hour is said."""
_IGNORED_FIELDS = ("stream", "user", "metadata")
_OWNER = "X-Cache-Owner"
"""Whose request it is, by the API server's word, which lets no client say it."""


def apart(payload: Mapping[str, Any], field: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """A request whose prompt is found by its owner alone. `field`: where the engine looks for that; a client's own value goes."""
    others = {name: value for name, value in payload.items() if name != field}
    return others | ({field: owner} if (owner := headers.get(_OWNER)) else {})


class AnswerCache:
    """Answers by everything that determines them."""

    def __init__(self, url: str, password_file: Path | None) -> None:
        password = password_file.read_text().strip() if password_file is not None else None
        self._client = redis.asyncio.Redis.from_url(
            url, password=password, socket_timeout=BUDGET_S, socket_connect_timeout=BUDGET_S, retry=None
        )
        self._paused_until = 0.0

    @staticmethod
    def key(headers: Mapping[str, str], served: str, payload: Mapping[str, Any]) -> str:
        """SHA-256 over whose answer it is, what serves (weights, engine and context), and every field that can change the answer.

        Nobody learns by a hit what another client of the API server has asked.
        """
        owner = headers.get(_OWNER, "")
        fields = {name: value for name, value in payload.items() if name not in _IGNORED_FIELDS}
        text = json.dumps([owner, served, fields], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"answer:3:{hashlib.sha256(text.encode()).hexdigest()}"

    @staticmethod
    def is_deterministic(payload: Mapping[str, Any]) -> bool:
        return payload.get("temperature") == 0 or payload.get("seed") is not None

    async def get(self, key: str) -> tuple[bytes | None, float]:
        """The stored answer, or None, and the seconds that it took. Raises CacheUnavailable within the budget."""
        stored = await self._within_budget(self._client.get(key))
        digest, _, kept = bytes(stored or b"").partition(b"\n")
        if digest != hashlib.sha256(kept).hexdigest().encode() or len(kept) < _TIME.size:
            return None, 0.0
        return kept[_TIME.size :], _TIME.unpack_from(kept)[0] / 1e6

    async def put(self, key: str, body: bytes, took_s: float) -> None:
        """Raises CacheUnavailable."""
        kept = _TIME.pack(min(int(took_s * 1e6), _LONGEST_US)) + body
        await self._within_budget(self._client.set(key, hashlib.sha256(kept).hexdigest().encode() + b"\n" + kept, ex=TTL_S))

    async def _within_budget(self, operation: Any) -> Any:
        if time.monotonic() < self._paused_until:
            operation.close()
            raise CacheUnavailable
        try:
            async with asyncio.timeout(BUDGET_S):
                return await operation
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            self._paused_until = time.monotonic() + _PAUSE_S
            log.warning("cache bypassed for %g s: %s", _PAUSE_S, type(error).__name__)
            raise CacheUnavailable from None

    async def close(self) -> None:
        await self._client.aclose()


@dataclass(frozen=True)
class Lookup:
    """What a look-up came to. Nothing in it: none was made."""

    key: str | None = None
    body: bytes | None = None
    headers: Mapping[str, str] | None = None


class CacheUnavailable(Exception):  # noqa: N818 (a state, not an error)
    """The cache did not answer in time."""
