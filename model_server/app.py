"""Request handling: admit, look up, generate, count."""

import asyncio
import contextlib
import json
import logging
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client.aiohttp import make_aiohttp_handler

from model_server import body, endpoints, openapi
from model_server.cache import AnswerCache, CacheUnavailable, Lookup, apart
from model_server.endpoints import Api, Endpoint
from model_server.engine import UNEXPECTED, Answer, Engine
from model_server.errors import ApiError, shape
from model_server.metrics import Metrics
from model_server.settings import Settings

log = logging.getLogger("model_server")
_RETRY_S = "2"
_TAIL_BYTES = 4096
"""The engine's counts stand in the first or the last event of a stream, which are shorter than this."""


class ModelServer:
    """State of one process. `digest` identifies the weights in cache keys."""

    def __init__(self, settings: Settings, engine: Engine, digest: str, cache: AnswerCache | None) -> None:
        self.settings, self.engine, self.digest, self.cache = settings, engine, digest, cache
        self.metrics = Metrics(settings.context_length)
        self._shown = make_aiohttp_handler(self.metrics.registry)
        self.document = openapi.document(engine.endpoints)
        self.draining = False
        self._slots = asyncio.Semaphore(settings.parallel)
        self._waiting = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=body.MAX_BODY_BYTES, middlewares=[self._middleware])
        app.on_response_prepare.append(shape)
        for path in self.engine.endpoints:
            app.router.add_post(path, self.forward)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/ready", self.ready)
        app.router.add_get("/metrics", self.show_metrics)
        app.router.add_get("/openapi.json", self.openapi)
        return app

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """One shape for every error of an API."""
        api = endpoints.api_of(request.path)
        try:
            return await handler(request)
        except ApiError as error:
            return error.response(api)
        except web.HTTPException as error:
            message = (
                f"{request.method} {request.path}: got {error.reason}, want one of {', '.join(openapi.named(self.document))}; correct it"
            )
            return ApiError(error.status, "invalid_request_error", message).response(api)
        except (web.RequestPayloadError, HttpProcessingError) as error:
            message = f"body: got {type(error).__name__}, want a whole one as its headers say; correct it"
            return ApiError(400, "invalid_request_error", message).response(api)
        except ConnectionResetError:
            raise  # the client has left
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s %s: %s at %s:%s", request.method, request.path, type(error).__name__, last.filename, last.lineno)
            message = "this server: got a request that it failed on, want an answer; report it"
            return ApiError(500, "server_error", message, "internal_error").response(api)

    async def health(self, _: web.Request) -> web.Response:
        if self.engine.failed:
            return web.json_response({"status": "the engine has ended"}, status=503)
        return web.json_response({"status": "ok"})

    async def ready(self, _: web.Request) -> web.Response:
        state = "draining" if self.draining else "ready" if self.engine.ready else self.engine.lost or "loading"
        return web.json_response({"status": state}, status=200 if state == "ready" else 503)

    async def models(self, _: web.Request) -> web.Response:
        length = self.settings.context_length
        entry = {"id": self.settings.served_id, "object": "model", "created": 0, "owned_by": "modelfleet"}
        entry |= {"context_length": length, "max_model_len": length, "capabilities": sorted(self.engine.abilities)}
        entry |= {"version": self.engine.answers_as(self.digest)} if self.engine.version else {}
        return web.json_response({"object": "list", "data": [entry]})

    async def openapi(self, _: web.Request) -> web.Response:
        return web.json_response(self.document)

    async def show_metrics(self, request: web.Request) -> web.StreamResponse:
        self.metrics.engine_up.set(float(self.engine.ready))
        self.metrics.waiting.set(self._waiting)
        with contextlib.suppress(*UNEXPECTED):
            if (tokens := await self.engine.tokens()) is not None:
                self.metrics.reached(tokens)
            self.metrics.saved.came("disk", await self.engine.returned())
        self.metrics.saved.settle()
        return await self._shown(request)

    @contextlib.asynccontextmanager
    async def _admission(self) -> AsyncIterator[None]:
        """A slot, or a refusal before any work is done."""
        if self._slots.locked():
            if self._waiting >= self.settings.max_queue:
                self.metrics.refused.inc()
                message = (
                    f"queue: got {self._waiting} waiting requests, want at most {self.settings.max_queue}; try again after {_RETRY_S} s"
                )
                raise ApiError(503, "server_error", message, "queue_full", {"Retry-After": _RETRY_S})
            self._waiting += 1
            try:
                await self._slots.acquire()
            finally:
                self._waiting -= 1
        else:
            await self._slots.acquire()
        self.metrics.running.inc()
        try:
            yield
        finally:
            self.metrics.running.dec()
            self._slots.release()

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """To the engine, on whichever of its endpoints."""
        endpoint = self.engine.endpoints[request.path]
        started, status = time.monotonic(), 500
        try:
            if not self.engine.ready:
                raise ApiError(
                    503, "server_error", "engine: got none that can answer now, want it; try again", "loading", {"Retry-After": _RETRY_S}
                )
            payload = self._payload(endpoint, await body.read(request, self.settings.body_s, self.settings.context_length))
            if self.engine.apart_by and endpoint.takes_place:
                payload = apart(payload, self.engine.apart_by, request.headers)
            lookup = await self._lookup(request, endpoint, payload)
            if lookup.body is not None:
                response: web.StreamResponse = web.Response(body=lookup.body, content_type="application/json", headers=lookup.headers)
            else:
                async with self._admission() if endpoint.takes_place else contextlib.nullcontext():
                    response = await self._generate(request, endpoint, payload, lookup, started)
            status = response.status
            return response
        except ApiError as error:
            status = error.status
            raise
        except (asyncio.CancelledError, ConnectionResetError):
            status = 499
            raise
        finally:
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.duration.observe(time.monotonic() - started)

    def _payload(self, endpoint: Endpoint, payload: Any) -> dict[str, Any]:
        if not isinstance(payload, dict) or payload.get(endpoint.required) in (None, []):
            raise ApiError(400, "invalid_request_error", f"{endpoint.required}: got nothing, want a value; add one")
        if endpoint.required == "messages" and not isinstance(payload["messages"], list):
            raise ApiError(400, "invalid_request_error", "messages: got no list, want a list of messages; correct it")
        if endpoint.names_model and payload.get("model") != self.settings.served_id:
            message = f"model: got {payload.get('model')!r}, want {self.settings.served_id}; correct it"
            raise ApiError(404, "invalid_request_error", message, "model_not_found")
        return payload

    async def _lookup(self, request: web.Request, endpoint: Endpoint, payload: Mapping[str, Any]) -> Lookup:
        """Only a client that asks for exact answers may get one, and only where the answer cannot differ."""
        if not endpoint.is_cached or request.headers.get("X-Cache", "").lower() != "exact" or payload.get("stream"):
            return Lookup()
        if self.cache is None or not self.cache.is_deterministic(payload):
            return self._outcome("bypass", None, None)
        key = self.cache.key(request.headers, f"{self.engine.answers_as(self.digest)} {self.settings.context_length}", payload)
        try:
            body, took_s = await self.cache.get(key)
        except CacheUnavailable:
            return self._outcome("bypass", None, None)
        self.metrics.saved.answer(took_s)
        return self._outcome("miss" if body is None else "hit", key, body)

    def _outcome(self, outcome: str, key: str | None, body: bytes | None) -> Lookup:
        self.metrics.cache.labels(outcome).inc()
        return Lookup(key, body, {"X-Cache": outcome})

    async def _generate(
        self, request: web.Request, endpoint: Endpoint, payload: Mapping[str, Any], lookup: Lookup, started: float
    ) -> web.StreamResponse:
        begun = time.monotonic()
        try:
            async with self.engine.request(endpoint.path, payload) as answer:
                if answer.status != 200:
                    said = await answer.read()
                    raise self.engine.refusal(await self._blamed(endpoint, payload, answer.status), said)
                if payload.get("stream"):
                    return await self._stream(request, endpoint.api, answer, started, begun)
                body = await answer.read()
        except aiohttp.ClientError as error:
            raise ApiError(500, "server_error", f"engine: got {type(error).__name__}, want an answer; try again", "engine_failed") from None
        ended = time.monotonic()
        self.metrics.first_byte.observe(ended - started)
        if endpoint.takes_place and not self.engine.counts:
            self.metrics.count(endpoint.api, body, ended - begun)
        if lookup.key is not None and self.cache is not None:
            with contextlib.suppress(CacheUnavailable):
                await self.cache.put(lookup.key, body, ended - begun)
        return web.Response(body=body, content_type="application/json", headers=lookup.headers)

    async def _blamed(self, endpoint: Endpoint, payload: Mapping[str, Any], status: int) -> int:
        """The status that says whose fault it was. llama.cpp answers 500 for whatever it throws, also while it reads a request: a token
        that is not in the vocabulary, a template that refuses the roles (ex_wrapper in tools/server/server.cpp, build 10488)."""
        if status != 500 or (endpoint.takes_place and endpoint.read_by is None):
            return status
        if endpoint.read_by is not None:
            async with self.engine.request(endpoint.read_by, payload) as read:
                return 400 if read.status in (400, 500) else status
        return 400

    async def _stream(self, request: web.Request, api: Api, answer: Answer, started: float, begun: float) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        head = tail = b""
        first = begun
        try:
            async for chunk in answer.chunks():
                if not response.prepared:
                    first = time.monotonic()
                    self.metrics.first_byte.observe(first - started)
                    await response.prepare(request)
                    head = chunk[:_TAIL_BYTES]
                await response.write(chunk)
                tail = (tail + chunk)[-_TAIL_BYTES:]
        except aiohttp.ClientPayloadError:
            failure = ApiError(500, "server_error", "engine: got a broken answer, want a whole one; try again", "engine_failed")
            if not response.prepared:
                raise failure from None
            # No [DONE] follows, and no message_stop: that is how a client tells a cut stream from a finished one.
            event = "event: error\n" if api == "anthropic" else ""
            await response.write(f"{event}data: {json.dumps(failure.body(api))}\n\n".encode())
        if not response.prepared:
            await response.prepare(request)
        if not self.engine.counts:
            self.metrics.count(api, head + tail, time.monotonic() - begun, first - begun)
        await response.write_eof()
        return response
