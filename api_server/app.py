"""Request handling: check, choose, forward."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from api_server import errors
from api_server.keys import Keys
from api_server.metrics import Metrics
from api_server.settings import Route, Settings
from api_server.upstreams import Address, Upstream, refresh_forever

log = logging.getLogger("api_server")
_RETRY_S = 2
_DROPPED_FIELDS = ("options", "keep_alive")
"""Ollama's own: a request with another num_ctx reloads the model for everybody, keep_alive 0 unloads it."""
_FORWARDED_HEADERS = ("accept", "content-type", "x-cache", "x-request-id")
_RETURNED_HEADERS = ("content-type", "retry-after", "x-cache")


class ApiServer:
    """State of one process."""

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self.settings = settings
        self.keys = keys
        self.draining = False
        self.upstreams: dict[str, Upstream] = {}
        for route in settings.routes.values():
            upstream = self.upstreams.setdefault(route.url, Upstream(route.url, route.max_in_flight))
            # Two models behind one server share what it can do.
            upstream.max_in_flight = min(upstream.max_in_flight, route.max_in_flight)
        self.metrics = Metrics(list(self.upstreams.values()))
        self._session: aiohttp.ClientSession | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=self.settings.max_body_bytes, middlewares=[self._middleware])
        app.router.add_post("/v1/chat/completions", self.chat_completions)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/ready", self.ready)
        app.cleanup_ctx.append(self._run)
        return app

    async def _run(self, _: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=self.settings.request_timeout_s)
        # An idle connection holds up the drain of a server: it cannot be told from a request that is being thought about.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session:
            self._session = session
            refresher = asyncio.create_task(refresh_forever(list(self.upstreams.values())))
            yield
            refresher.cancel()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Keys for everything below /v1, and one shape for every error."""
        try:
            if request.path.startswith("/v1/") and not self.keys.accepts(request.headers.get("Authorization")):
                raise errors.unauthorized()
            return await handler(request)
        except errors.ApiError as error:
            return error.response()
        except web.HTTPRequestEntityTooLarge:
            limit = self.settings.max_body_bytes
            return errors.ApiError(413, "invalid_request_error", f"body: got too much, want at most {limit} bytes; send less").response()
        except web.HTTPException as error:
            message = f"{request.method} {request.path}: got {error.reason}, want one of POST /v1/chat/completions, GET /v1/models"
            return errors.ApiError(error.status, "invalid_request_error", f"{message}; correct the path").response()

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(self, _: web.Request) -> web.Response:
        if self.draining:
            return web.json_response({"status": "draining"}, status=503)
        # Before the first round a new pod would refuse models whose servers it has only not looked up yet.
        looked = all(upstream.looked for upstream in self.upstreams.values())
        if not looked or not any(upstream.answers for upstream in self.upstreams.values()):
            return web.json_response({"status": "no upstream answers"}, status=503)
        return web.json_response({"status": "ready"})

    async def models(self, _: web.Request) -> web.Response:
        data = [{"id": model, "object": "model", "created": 0, "owned_by": "modelfleet"} for model in self.settings.routes]
        return web.json_response({"object": "list", "data": data})

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        started = time.monotonic()
        request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
        model, status = "unknown", 500
        try:
            payload = _payload(await request.read())
            route = self.settings.routes.get(payload["model"])
            if route is None:
                raise errors.unknown_model(payload["model"], list(self.settings.routes))
            model = payload["model"]
            body = _upstream_body(payload, route, model)
            response = await self._forward(request, request_id, model, self.upstreams[route.url], body, started)
            status = response.status
            return response
        except errors.ApiError as error:
            status = error.status
            error.headers["x-request-id"] = request_id
            raise
        except (asyncio.CancelledError, ConnectionResetError):
            status = 499
            raise
        finally:
            elapsed = time.monotonic() - started
            self.metrics.requests.labels(model, str(status)).inc()
            self.metrics.duration.labels(model).observe(elapsed)
            log.info("request %s model %s status %s %.3f s", request_id, model, status, elapsed)

    async def _forward(
        self, request: web.Request, request_id: str, model: str, upstream: Upstream, body: bytes, started: float
    ) -> web.StreamResponse:
        """Send to the least busy address; to another one only while nothing of an answer has come."""
        headers = {name: request.headers[name] for name in _FORWARDED_HEADERS if name in request.headers} | {"x-request-id": request_id}
        candidates = upstream.candidates()
        if not candidates:
            raise errors.too_busy(model, _RETRY_S) if upstream.addresses else errors.unavailable(model, _RETRY_S)
        assert self._session is not None  # noqa: S101 (set while the application runs)
        for address in candidates:
            with upstream.claim(address):
                try:
                    response = await self._session.post(f"{address.url}/v1/chat/completions", data=body, headers=headers)
                except aiohttp.ConnectionTimeoutError as error:
                    self._failed(upstream, address, error)
                    continue
                except TimeoutError as error:
                    # It works on the request, or hangs; a second server would only do the same work again.
                    self._failed(upstream, address, error)
                    raise errors.upstream_failed(model, f"nothing for {self.settings.request_timeout_s:g} s") from None
                except (aiohttp.ClientConnectionError, ConnectionResetError) as error:
                    self._failed(upstream, address, error)
                    continue
                async with response:
                    return await self._relay(request, request_id, model, upstream, response, started)
        raise errors.unavailable(model, _RETRY_S)

    def _failed(self, upstream: Upstream, address: Address, error: BaseException) -> None:
        upstream.avoid(address)
        self.metrics.upstream_errors.labels(upstream.url, type(error).__name__).inc()
        log.warning("%s: %s from %s", upstream.url, type(error).__name__, address.host)

    async def _relay(
        self, request: web.Request, request_id: str, model: str, upstream: Upstream, source: aiohttp.ClientResponse, started: float
    ) -> web.StreamResponse:
        """Pass the body on as it comes, without looking at it."""
        target = web.StreamResponse(status=source.status)
        for name in _RETURNED_HEADERS:
            if name in source.headers:
                target.headers[name] = source.headers[name]
        target.headers["x-request-id"] = request_id
        is_stream = source.content_type == "text/event-stream"
        if is_stream:
            # Proxies between us and the client would collect the events otherwise.
            target.headers["Cache-Control"] = "no-cache"
            target.headers["X-Accel-Buffering"] = "no"
        elif source.content_length is not None:
            target.content_length = source.content_length
        broken = False
        while not broken:
            # Only reading may fail for the upstream's sake; a failed write is the client's leaving, and ends the request.
            try:
                chunk = await source.content.readany()
            except (aiohttp.ClientError, TimeoutError) as error:
                self.metrics.upstream_errors.labels(upstream.url, type(error).__name__).inc()
                broken = True
                continue
            if not chunk:
                break
            if not target.prepared:
                self.metrics.first_byte.labels(model).observe(time.monotonic() - started)
                await target.prepare(request)
            await target.write(chunk)
        if broken:
            await self._end_broken(request, target, errors.upstream_failed(model, "a broken answer"), is_stream=is_stream)
            return target
        if not target.prepared:
            await target.prepare(request)
        await target.write_eof()
        return target

    @staticmethod
    async def _end_broken(request: web.Request, target: web.StreamResponse, failure: errors.ApiError, *, is_stream: bool) -> None:
        """Tell the client that its answer is not whole, in the way that the answer's state still allows."""
        if not target.prepared:
            raise failure
        if is_stream:
            # No [DONE] follows: that is how a client tells a cut stream from a finished one.
            await target.write(f"data: {json.dumps(failure.body)}\n\n".encode())
            await target.write_eof()
        elif request.transport is not None:
            # A truncated body must not look whole.
            request.transport.abort()


def _payload(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body)
    except ValueError as error:
        raise errors.bad_request(f"body: got no JSON ({error}), want a JSON object; correct it") from None
    if not isinstance(payload, dict):
        raise errors.bad_request(f"body: got {type(payload).__name__}, want a JSON object; correct it")
    if not isinstance(payload.get("model"), str):
        raise errors.bad_request("model: got nothing, want a model id; see GET /v1/models")
    if not isinstance(payload.get("messages"), list) or not payload["messages"]:
        raise errors.bad_request("messages: got nothing, want a list of messages; add one")
    return payload


def _upstream_body(payload: dict[str, Any], route: Route, model: str) -> bytes:
    kept = {key: value for key, value in payload.items() if key not in _DROPPED_FIELDS}
    return json.dumps(kept | {"model": route.model or model}, separators=(",", ":")).encode()
