"""One request on its way: wait for a server, see that it fits, send it, relay the answer."""

import asyncio
import json
import logging
import re
import time
import uuid

import aiohttp
from aiohttp import web

from api_server import abilities, errors, requests
from api_server.abilities import Abilities
from api_server.answer import Answer
from api_server.counting import ContextGuard
from api_server.metrics import Metrics
from api_server.paths import Payload, is_native
from api_server.settings import Route, Settings
from api_server.upstreams import LATE_OR_STRANGE, Address, Upstream, tagged
from api_server.usage import Reader

log = logging.getLogger("api_server")
_RETRY_S = 2
_HELD_RETRY_S = 10
_POLL_S = 0.1
_FORWARDED_HEADERS = ("accept", "x-cache")
"""No key, no Origin (Ollama refuses foreign ones), nothing that is between two neighbours on the way."""
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}")
"""A request id that may stand in a header and a line of the log."""
_UNKNOWN_S = 10.0
"""How long a server that did not say what its model can do is not asked again."""


class Proxy:
    """Forwards inference for the routes of the settings."""

    def __init__(self, settings: Settings, upstreams: dict[str, Upstream], metrics: Metrics, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._upstreams = upstreams
        self._metrics = metrics
        self._session = session
        self._guard = ContextGuard(session)

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """A POST of requests.INFERENCE."""
        started = time.monotonic()
        offered = request.headers.get("x-request-id", "")
        request_id = offered if _PRINTABLE.fullmatch(offered) else uuid.uuid4().hex
        model, status = "unknown", 500
        try:
            payload = requests.parse(request.path, await request.read())
            model, route = self.route(payload["model"], native=is_native(request.path))
            answer = Answer(request, request_id, requests.stream_kind(request.path, payload))
            try:
                response = await self._answer(request, answer, payload, model, route, started)
                status = response.status
            except errors.ApiError as error:
                status = error.status
                response = await answer.fail(error)
            return response
        except errors.ApiError as error:
            status = error.status
            error.headers["x-request-id"] = request_id
            if error.body["error"]["code"] == "context_length_exceeded":
                self._metrics.too_long.labels(model).inc()
            raise
        except (asyncio.CancelledError, ConnectionResetError):
            status = 499
            raise
        finally:
            elapsed = time.monotonic() - started
            self._metrics.requests.labels(model, str(status)).inc()
            self._metrics.duration.labels(model).observe(elapsed)
            log.info("request %s model %s status %s %.3f s", request_id, model, status, elapsed)

    def route(self, wanted: str, *, native: bool) -> tuple[str, Route]:
        """Id and route of the model that a client names; Ollama's own API takes `name` for `name:latest`. Raises ApiError."""
        routes = self._settings.routes
        model = f"{wanted}:latest" if native and wanted not in routes and f"{wanted}:latest" in routes else wanted
        if model not in routes:
            raise errors.unknown_model(wanted, list(routes))
        if native and routes[model].engine != "ollama":
            raise errors.not_native(model)
        return model, routes[model]

    async def _answer(
        self, request: web.Request, answer: Answer, payload: Payload, model: str, route: Route, started: float
    ) -> web.StreamResponse:
        """Send to the best address; to another one only while nothing of an answer has come."""
        upstream = self._upstreams[route.url]
        await self._hold(answer, upstream, model, route)
        candidates = upstream.candidates(route, model, requests.affinity(payload))
        if not candidates:
            raise errors.too_busy(model, _RETRY_S) if upstream.serves(route, model) else errors.unavailable(model, _RETRY_S)
        reader = Reader(answer.stream, drop_usage=requests.drops_usage(payload))
        body, dropped = requests.cleaned(request.path, payload, route, model)
        self._metrics.left_out(model, dropped)
        for address in candidates:
            with upstream.claim(address):
                try:
                    source = await self._send(request, address, body, model, route, answer.request_id)
                except aiohttp.ConnectionTimeoutError as error:
                    self._failed(upstream, address, error)
                    continue
                except TimeoutError as error:
                    # It works on the request, or hangs; a second server would only do the same work again.
                    self._failed(upstream, address, error)
                    raise errors.upstream_failed(model, f"nothing for {self._settings.request_timeout_s:g} s") from None
                except (aiohttp.ClientConnectionError, ConnectionResetError) as error:
                    self._failed(upstream, address, error)
                    continue
                async with source:
                    try:
                        return await answer.relay(source, reader)
                    except (aiohttp.ClientError, TimeoutError) as error:
                        self._metrics.upstream_errors.labels(upstream.url, type(error).__name__).inc()
                        raise errors.upstream_failed(model, "a broken answer") from None
                    finally:
                        self._metrics.answered(model, reader, started)
        raise errors.unavailable(model, _RETRY_S)

    async def _send(
        self, request: web.Request, address: Address, body: Payload, model: str, route: Route, request_id: str
    ) -> aiohttp.ClientResponse:
        if abilities.concerned(body):
            body, dropped = abilities.adapted(body, await self.abilities(address, model, route), model)
            self._metrics.left_out(model, dropped)
        if route.engine == "ollama":
            body, counted = await self._guard.fit(request.path, body, route, model, address)
            if counted:
                self._metrics.counted.labels(model).inc()
        headers = {
            name: request.headers[name] for name in _FORWARDED_HEADERS if name in request.headers and request.headers[name].isascii()
        }
        headers |= {"content-type": "application/json", "x-request-id": request_id}
        data = json.dumps(body, separators=(",", ":")).encode()
        return await self._session.post(address.url + request.path, data=data, headers=headers)

    async def abilities(self, address: Address, model: str, route: Route) -> Abilities:
        """What the model can do at an address. A look-up that fails is no reason to fail a request: then nothing is known."""
        name = route.model or model
        key = name, str((address.store or {}).get(tagged(name), {}).get("digest", ""))
        if key in address.abilities:
            return address.abilities[key]
        if time.monotonic() < address.silent_until:
            return abilities.UNKNOWN
        try:
            found = await abilities.ask(self._session, address.url, route.engine, name)
        except LATE_OR_STRANGE as error:
            log.warning("%s: %s when asked what %s can do", address.url, type(error).__name__, name)
            address.silent_until = time.monotonic() + _UNKNOWN_S
            return abilities.UNKNOWN
        address.abilities[key] = found
        return found

    async def _hold(self, answer: Answer, upstream: Upstream, model: str, route: Route) -> None:
        """Keep the request until a server has its model: the fleet may be at zero, or between two pods. Raises ApiError."""
        if not self._settings.hold_s or upstream.serves(route, model):
            return
        if self._metrics.waiting[model] >= self._settings.max_waiting:
            raise errors.too_busy(model, _HELD_RETRY_S)
        started = time.monotonic()
        self._metrics.waiting[model] += 1
        upstream.last_used = started
        try:
            while not upstream.serves(route, model):
                if time.monotonic() - started > self._settings.hold_s:
                    raise errors.held_too_long(model, self._settings.hold_s, _HELD_RETRY_S)
                await answer.wait()
                await asyncio.sleep(_POLL_S)
        finally:
            self._metrics.waiting[model] -= 1
            self._metrics.held.labels(model).observe(time.monotonic() - started)

    def _failed(self, upstream: Upstream, address: Address, error: BaseException) -> None:
        upstream.avoid(address)
        self._metrics.upstream_errors.labels(upstream.url, type(error).__name__).inc()
        log.warning("%s: %s from %s", upstream.url, type(error).__name__, address.host)
