"""Embeddings that were made before, from the cache server: whoever indexes code again asks for nearly all of the same texts.

A text's embedding is that of the same key's earlier request alone, of the same model's digest and engine's version, with the same other
fields. The cache server may be slow, full, wrong or gone: then a request goes on as if there were none.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from api_server import errors
from api_server.cache import STRANGE, connect
from api_server.intake import Claim
from api_server.paths import EMBEDDINGS, NATIVE_EMBED, Payload, encode
from api_server.requests import Asked
from api_server.settings import Settings

PATHS = (EMBEDDINGS, NATIVE_EMBED)
PREFIX = "embedding:2:"
"""The number is that of the form of what stands there."""
KEPT_S = 30 * 86400
_BUDGET_S, _A_TEXT_S = 0.25, 0.001
"""What a look-up may cost a request, and for each text more: a small part of what a server takes for one. After a failure it costs nothing
for a while."""
_CONNECTION_S = 2.0
"""Longest silence of a connection; what waits for it has waited for less."""
_PAUSE_S = 5.0
"""After a failure nobody asks again for this long."""
_MOST = 4096
"""Texts of a request that are looked up; OpenAI's limit is 2048."""
_LONGEST = 96 * 2**10
"""Bytes of one embedding: 4096 numbers of 23 characters."""
_SUM = 16
"""Bytes of the sum that stands before what is kept."""
_TIME, _LONGEST_US = struct.Struct(">I"), 3600 * 10**6
"""Microseconds that stand before an embedding: what it took to make."""

log = logging.getLogger("api_server")


class _Entry(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class _Answer(msgspec.Struct):
    data: list[_Entry]


class _Native(msgspec.Struct):
    embeddings: list[msgspec.Raw]


@dataclass
class Found:
    """What is there of a request's texts."""

    path: str
    keys: list[bytes]
    """One for each text, in their order."""
    had: list[bytes | None]
    """Their embeddings as JSON."""
    limit: int
    """Bytes that the answer for the others may have."""
    saved_s: float = 0.0
    """What it took to make those that are there."""
    made: dict[bytes, bytes] = field(default_factory=dict)
    """By key, what a server has made since."""

    @property
    def count(self) -> int:
        return sum(each is not None for each in self.had)

    @property
    def is_all(self) -> bool:
        return None not in self.had

    def whole(self, model: str) -> bytes:
        """The answer, where every text's embedding was there. No server counted a token for it."""
        if self.path == NATIVE_EMBED:
            return encode({"model": model, "embeddings": list(map(_raw, self.had)), "prompt_eval_count": 0})
        return encode({"object": "list", "data": self._data(), "model": model, "usage": {"prompt_tokens": 0, "total_tokens": 0}})

    def merged(self, document: bytes) -> bytes:
        """A server's answer for the others, with those that were there; notes what is new. Raises ValueError on one that is no such answer,
        where it cannot go to the client as it is."""
        try:
            return self._merged(document)
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            if self.count:
                raise ValueError("no embeddings, or not those of all texts") from error
            return document

    def _merged(self, document: bytes) -> bytes:
        if self.path == NATIVE_EMBED:
            fresh = [bytes(each) for each in msgspec.json.decode(document, type=_Native).embeddings]
        else:
            entries = msgspec.json.decode(document, type=_Answer).data
            fresh = [bytes(entry.embedding) for entry in sorted(entries, key=lambda entry: entry.index)]
        places = [place for place, each in enumerate(self.had) if each is None]
        if len(fresh) != len(places):
            raise ValueError(f"{len(fresh)} embeddings for {len(places)} texts")
        self.made = {self.keys[place]: each for place, each in zip(places, fresh, strict=True)}
        if not self.count:
            return document
        for place, each in zip(places, fresh, strict=True):
            self.had[place] = each
        said = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
        name, value = ("embeddings", list(map(_raw, self.had))) if self.path == NATIVE_EMBED else ("data", self._data())
        return encode({**said, name: value})

    def _data(self) -> list[dict[str, Any]]:
        return [{"object": "embedding", "embedding": _raw(each), "index": index} for index, each in enumerate(self.had)]


def _raw(value: bytes | None) -> msgspec.Raw:
    return msgspec.Raw(value or b"null")


class Embeddings:
    """Looks up and keeps. Raises SettingsError without the password's file."""

    def __init__(self, settings: Settings) -> None:
        self._secret = (settings.cache_password or "").encode()
        self._client = connect(settings, _CONNECTION_S)
        self._paused_until = 0.0

    async def find(self, owner: str, version: str, asked: Asked, claim: Claim) -> Found | None:
        """What is there for this key, and takes the memory for the answer. None: nothing can be looked up, or kept."""
        texts = _texts(asked.body)
        if not texts or len(texts) > _MOST or time.monotonic() < self._paused_until:
            return None
        others = sorted((name, value) for name, value in asked.body.items() if name not in ("input", "model", "user"))
        # JSON has numbers of any size, as requests do.
        of = encode([owner, version, asked.path, others])
        keys = [self._key(of, text) for text in texts]
        try:
            async with asyncio.timeout(_BUDGET_S + _A_TEXT_S * len(keys)):
                stored: Any = await self._client.mget(keys)
            read = [self._checked(key, value) for key, value in zip(keys, stored, strict=True)]
        except STRANGE as error:
            await self._pause(error)
            return None
        had = [each and each[1] for each in read]
        there = [len(each) for each in had if each is not None]
        # All of one request are as long as each other.
        a_text = min(_LONGEST, 2 * max(there)) if there else _LONGEST // 2
        saved_s = sum(each[0] for each in read if each is not None) / 1e6
        found = Found(asked.path, keys, had, 2**12 + a_text * (len(keys) - len(there)), saved_s)
        try:
            claim.grow(2 * (sum(there) + found.limit))
        except errors.ApiError:
            return None
        return found

    async def merged(self, found: Found, document: bytes, took_s: float) -> bytes:
        """The whole answer, of a server's for the rest, which is kept for the next time with the time that it took. Raises ValueError, as
        Found.merged."""
        missing = len(found.had) - found.count
        whole = found.merged(document)
        if found.made and time.monotonic() >= self._paused_until:
            await self._keep(found, _TIME.pack(min(int(took_s * 1e6 / missing), _LONGEST_US)))
        return whole

    async def _keep(self, found: Found, took: bytes) -> None:
        """`took`: each of them."""
        try:
            async with asyncio.timeout(2 * (_BUDGET_S + _A_TEXT_S * len(found.made))), self._client.pipeline(transaction=False) as line:
                for key, value in found.made.items():
                    if len(value) <= _LONGEST:
                        line.set(key, self._sum(key, took + value) + took + value, ex=KEPT_S)
                await line.execute()
        except STRANGE as error:
            await self._pause(error)

    async def _pause(self, error: BaseException) -> None:
        self._paused_until = time.monotonic() + _PAUSE_S
        with contextlib.suppress(*STRANGE):
            await self._client.connection_pool.disconnect()
        log.warning("embeddings: got %s of the cache server, want it to answer; not asked for %g s", type(error).__name__, _PAUSE_S)

    def _key(self, of: bytes, text: str) -> bytes:
        """Keyed, so that who can read names in the cache server cannot look for a text that he guesses."""
        sums = hashlib.blake2b(of, digest_size=32, key=self._secret[:64])
        sums.update(text.encode())
        return PREFIX.encode() + sums.hexdigest().encode()

    def _sum(self, key: bytes, value: bytes) -> bytes:
        return hashlib.blake2b(key + value, digest_size=_SUM, key=self._secret[:64]).digest()

    def _checked(self, key: bytes, stored: Any) -> tuple[int, bytes] | None:
        """What was kept under this very key, if it is whole: microseconds and embedding."""
        if not isinstance(stored, bytes) or not 0 < len(stored) - _SUM - _TIME.size <= _LONGEST:
            return None
        sums, value = stored[:_SUM], stored[_SUM:]
        return (_TIME.unpack_from(value)[0], value[_TIME.size :]) if hmac.compare_digest(sums, self._sum(key, value)) else None


def left(asked: Asked, found: Found) -> Payload:
    """The request's body, with the texts alone that are not there."""
    texts = _texts(asked.body)
    missing = [text for text, each in zip(texts, found.had, strict=True) if each is None]
    return asked.body if len(missing) == len(texts) else asked.body | {"input": missing}


def _texts(body: Payload) -> list[str]:
    """Empty for tokens, which are texts of a model that only the client knows."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    return texts if all(isinstance(each, str) for each in texts) else []
