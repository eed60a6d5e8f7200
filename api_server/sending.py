"""Sends a request to one server, as that server and its model can take it."""

import logging
import time
from collections.abc import Collection, Iterable
from typing import Any

import aiohttp
from aiohttp import web

from api_server import abilities
from api_server.abilities import Abilities
from api_server.address import Address, tagged
from api_server.counting import ContextGuard
from api_server.limits import ACCOUNT
from api_server.metrics import Metrics
from api_server.paths import Payload, encode
from api_server.patience import Patience
from api_server.reading import LATE_OR_STRANGE
from api_server.requests import Asked
from api_server.settings import Route

CONNECT_S = 3.0
"""For a connection to a server."""

log = logging.getLogger("api_server")
_FORWARDED_HEADERS = ("accept", "x-cache", "traceparent", "tracestate")
"""And those of sessions. No key, no Origin (Ollama refuses foreign ones), nothing that is between two neighbours on the way."""
_SILENT = aiohttp.ClientTimeout(sock_connect=CONNECT_S)
"""Of the request proper: its Patience sees to silence."""
_UNKNOWN_S = 10.0
"""How long a server that did not say what its model can do is not asked again."""


class Sender:
    """Speaks to servers. `session` must neither decompress nor ask for compressed answers."""

    def __init__(self, metrics: Metrics, session: aiohttp.ClientSession, session_headers: Collection[str]) -> None:
        self._forwarded = frozenset((*_FORWARDED_HEADERS, *session_headers))
        self._metrics = metrics
        self._session = session
        self._guard = ContextGuard(session)

    async def send(
        self, request: web.Request, address: Address, asked: Asked, request_id: str, patience: Patience
    ) -> aiohttp.ClientResponse:
        """The head of the server's answer. Raises ApiError on what the model cannot take, and aiohttp.ClientError, TimeoutError."""
        body = await self._adapted(address, asked)
        if asked.route.engine == "ollama":
            body, counted = await self._guard.fit(asked, body, address)
            if counted:
                address.spoke()
                self._metrics.counted.labels(asked.model).inc()
        if address.pool is None:
            headers = self._passed_on(request)
            options: dict[str, Any] = {"url": address.url + asked.path, "allow_redirects": False}
        else:
            address.pool.check(asked.model, asked.most_tokens)
            headers, options = address.pool.headers(request.headers, asked.turn), address.pool.options(asked.path)
        headers |= {"content-type": "application/json", "x-request-id": request_id}
        patience.wait()
        log.debug("request %s of model %s goes to %s", request_id, asked.model, address.url)
        return await self._session.post(**options, data=encode(body), headers=headers, timeout=_SILENT)

    def _passed_on(self, request: web.Request) -> dict[str, str]:
        """Of two headers with one name, the first counts, as it does for the session."""
        found: dict[str, str] = {}
        for name, value in request.headers.items():
            if (lower := name.lower()) in self._forwarded:
                found.setdefault(lower, value)
        # Whose answers and prompts a model server may find for it; never the client's word.
        owner = {"x-cache-owner": request[ACCOUNT].key.name}
        return {name: value for name, value in found.items() if value.isascii()} | owner

    async def count(self, address: Address, asked: Asked) -> bytes:
        """The answer to a question for the number of tokens, of a server that has no such endpoint. Raises as `send` does."""
        tokens = await self._guard.tokens(asked, await self._adapted(address, asked), address)
        address.spoke()
        return encode({"input_tokens": tokens})

    async def _adapted(self, address: Address, asked: Asked) -> Payload:
        if not asked.concerns_abilities:
            return asked.body
        known = await self.abilities(address, asked.model, asked.route)
        body, dropped = abilities.adapted(asked.body, known, asked.model, asked.prompt if asked.media else "")
        self._metrics.left_out(asked.model, dropped)
        return body

    async def abilities(self, address: Address, model: str, route: Route) -> Abilities:
        """What the model can do at an address. A look-up that fails is no reason to fail a request: then nothing is known. So it is with a
        pool, which says so in no form that all have."""
        if address.pool is not None:
            return abilities.UNKNOWN
        name = route.model or model
        key = name, str((address.store or {}).get(tagged(name), {}).get("digest", ""))
        if key in address.abilities:
            return address.abilities[key]
        if time.monotonic() < address.silent_until:
            return abilities.UNKNOWN
        try:
            found = await abilities.ask(self._session, address.url, route.engine, *key)
        except LATE_OR_STRANGE as error:
            log.warning("%s: %s when asked what %s can do", address.url, type(error).__name__, name)
            address.silent_until = time.monotonic() + _UNKNOWN_S
            return abilities.UNKNOWN
        address.abilities[key] = found
        return found

    async def version(self, servers: Iterable[Address], model: str, route: Route) -> str:
        """Of the model, where all of its servers have the same; empty, where not or where one does not say."""
        having = [each for each in servers if each.answers and each.has(route.model or model, route.digest)]
        found = {(await self.abilities(each, model, route)).version for each in having}
        return found.pop() if len(found) == 1 else ""
