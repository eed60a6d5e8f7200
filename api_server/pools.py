"""Pools of servers that are not ours, behind one URL with OpenAI's API: how they are asked, and what of their answers a client may see.

Whose they are, where, and with which key stays here: a client learns neither the address nor the key.
"""

import json
import logging
import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import ResolveResult

from api_server import errors
from api_server.errors import ApiError
from api_server.reading import body
from api_server.sessions import Turn
from api_server.settings import Route, SettingsError, is_forbidden
from api_server.watched import Watched

LOOK_S = 10.0
"""Between two looks whether a pool answers: each is a request of somebody else's."""
_TIMEOUT = aiohttp.ClientTimeout(total=5)
_NO_LIST = (404, 405, 501)
"""Statuses of a pool that answers, and lists no models."""
_LONGEST_REFUSAL = 64 * 2**10
_BYTES_PER_TOKEN = 8
"""Of a prompt at most, as for our own (bindings.py): what is longer than the window by this is too long in any tokens."""
_TOO_LONG = re.compile(r"maximum context length|context window|prompt is too long|context_length_exceeded", re.IGNORECASE)
"""In the refusals of vLLM, SGLang, TensorRT-LLM, OpenAI, Anthropic and litellm."""
_OURS = (401, 402, 403, 404, 407)
"""Statuses that are about our key, our bill or our configuration, and not about what the client asked."""

log = logging.getLogger("api_server")


class Resolver(aiohttp.ThreadedResolver):
    """Looks names of pools up, but to no address that serves the machine itself, as a cloud's metadata."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        """Raises OSError."""
        found = await super().resolve(host, port, family)
        if any(is_forbidden(each["host"]) for each in found):
            raise OSError(None, "the name leads to an address of the machine itself")
        return found


class PoolKeys:
    """The file with the key of each pool; a changed one counts within a second. One that cannot be read is reported, and the old keys
    stay."""

    def __init__(self, path: Path | None) -> None:
        """Raises SettingsError."""
        self._file = Watched(path) if path is not None else None
        self._keys = _read(path) if path is not None else {}

    def of(self, pool: str) -> str:
        """Empty: none."""
        if self._file is not None and self._file.has_changed():
            try:
                self._keys = _read(self._file.path)
            except SettingsError as error:
                log.error("%s; the old keys stay", error)
        return self._keys.get(pool, "")


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
        good = isinstance(found, dict) and all(isinstance(key, str) and re.fullmatch(r"[!-~]+", key) for key in found.values())
    except (OSError, ValueError, RecursionError):
        found, good = {}, False
    if not good:
        raise SettingsError(f"API_SERVER_POOL_KEYS_FILE: got no keys in {path}, want a JSON map of pool to key; set externalKeys again")
    return found


class Pool:
    """One pool, as each request to it is made."""

    def __init__(self, route: Route, keys: PoolKeys) -> None:
        self._route, self._keys = route, keys
        self.host = urlsplit(route.url).hostname or ""
        self._tls = ssl.create_default_context() if route.url.startswith("https:") else None
        if self._tls is not None and route.ca:
            self._tls.load_verify_locations(cadata=route.ca)
        self._looked = float("-inf")
        self._well = True

    def _authorized(self) -> dict[str, str]:
        key = self._keys.of(self._route.pool)
        return {"Authorization": f"Bearer {key}"} if key else {}

    def headers(self, asked: Mapping[str, str], turn: Turn) -> dict[str, str]:
        """Of a request. `asked`: what the client sent, and may go on to somebody else."""
        kept = {name: asked[name] for name in ("accept", "traceparent", "tracestate") if asked.get(name, "").isascii() and name in asked}
        # A name of ours: no pool, and no client through a pool, sees the id of another key's session.
        session = {self._route.session_header: turn.spot.hex()} if self._route.session_header and turn.spot else {}
        return kept | session | self._authorized()

    def options(self, path: str) -> dict[str, Any]:
        """Where a request goes, and how. Its URL is that of an OpenAI client, which ends with the version."""
        url = self._route.url + path.removeprefix("/v1")
        return {"url": url, "allow_redirects": False} | ({"ssl": self._tls} if self._tls is not None else {})

    def check(self, model: str, most_tokens: int | None) -> None:
        """Raises ApiError on a prompt that is too long in any tokens. The pool itself counts what is nearer."""
        limit = self._route.context_length
        if limit and most_tokens is not None and most_tokens > _BYTES_PER_TOKEN * limit:
            raise errors.context_exceeded(model, None, limit)

    async def answers(self, session: aiohttp.ClientSession) -> bool:
        """Whether it takes requests of ours; looked at now and then."""
        if time.monotonic() - self._looked < LOOK_S:
            return self._well
        self._looked = time.monotonic()
        why = ""
        try:
            async with session.get(**self.options("/v1/models"), headers=self._authorized(), timeout=_TIMEOUT) as response:
                if response.status != 200 and response.status not in _NO_LIST:
                    why = f"status {response.status}"
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            why = type(error).__name__
        if self._well != (not why):
            log.warning("pool %s: %s", self._route.pool, f"does not answer, {why}" if why else "answers again")
        self._well = not why
        return self._well

    async def refusal(self, source: aiohttp.ClientResponse, model: str) -> ApiError:
        """What a client gets for an answer with another status than 200."""
        status = source.status
        log.warning("pool %s: status %d", self._route.pool, status)
        try:
            text = await body(source, _LONGEST_REFUSAL)
        except (ValueError, aiohttp.ClientError):
            text = b""
        if not 400 <= status < 500 or status in _OURS:
            return errors.unavailable(model, 10) if status == 503 else errors.upstream_failed(model, f"status {status}")
        if status in (400, 413) and self._route.context_length and _TOO_LONG.search(text.decode(errors="replace")):
            return errors.context_exceeded(model, None, self._route.context_length)
        return errors.upstream_said(status, self._hidden(text), source.headers.get("retry-after"))

    def _hidden(self, text: bytes) -> bytes:
        """Without what names the pool: some repeat the key or the address."""
        for secret in (self._keys.of(self._route.pool), self._route.url, self.host):
            text = text.replace(secret.encode(), b"...") if secret else text
        return text
