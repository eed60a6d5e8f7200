"""The process: its routes, its keys, and what it keeps running."""

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from api_server import cors, errors
from api_server.keys import Keys
from api_server.listings import ALLOWED, Listings
from api_server.metrics import Metrics
from api_server.paths import INFERENCE
from api_server.proxy import Proxy
from api_server.settings import Settings
from api_server.upstreams import Upstream, refresh_forever

_KEYLESS = ("/", "/health", "/ready")
_NATIVE = {entry.partition(" ")[2] for entry in ALLOWED if " /api/" in entry}

log = logging.getLogger("api_server")


def _place(error: Exception) -> str:
    """File and line where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


class ApiServer:
    """State of one process."""

    def __init__(self, settings: Settings, keys: Keys, session: aiohttp.ClientSession) -> None:
        self.settings = settings
        self.keys = keys
        self.draining = False
        self.upstreams: dict[str, Upstream] = {}
        for route in settings.routes.values():
            upstream = self.upstreams.setdefault(route.url, Upstream(route.url, route.max_in_flight, route.engine))
            # Two models behind one server share what it can do.
            upstream.max_in_flight = min(upstream.max_in_flight, route.max_in_flight)
        self.metrics = Metrics(list(self.upstreams.values()), settings.routes)
        self._session = session
        self._proxy = Proxy(settings, self.upstreams, self.metrics, session)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=self.settings.max_body_bytes, middlewares=[self._middleware])
        cors.allow(app, self.settings.cors_origins)
        for path in INFERENCE:
            app.router.add_post(path, self._proxy.infer)
        Listings(self.settings, self.upstreams, self._proxy, self._session).add_to(app)
        app.router.add_get("/health", self.health)
        app.router.add_get("/ready", self.ready)
        app.cleanup_ctx.append(self._run)
        return app

    async def _run(self, _: web.Application) -> AsyncIterator[None]:
        waiting = self.metrics.waiting
        refresher = asyncio.create_task(refresh_forever(list(self.upstreams.values()), self._session, lambda: any(waiting.values())))
        yield
        refresher.cancel()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Keys for everything but the probes, and one shape for every error of an API."""
        native = request.path in _NATIVE
        try:
            if request.path not in _KEYLESS and not self._has_key(request):
                raise errors.unauthorized()
            return await handler(request)
        except errors.ApiError as error:
            return error.response(native=native)
        except web.HTTPRequestEntityTooLarge:
            message = f"body: got too much, want at most {self.settings.max_body_bytes} bytes; send less"
            return errors.ApiError(413, "invalid_request_error", message).response(native=native)
        except web.HTTPException as error:
            message = f"{request.method} {request.path}: got {error.reason}, want one of {', '.join(ALLOWED)}; correct the path"
            return errors.ApiError(error.status, "invalid_request_error", message).response()
        except ConnectionResetError:
            raise  # the client has left
        except Exception as error:
            # Nobody may see a page without a shape. The line says what to report, without the request's own words.
            log.error("%s %s: %s at %s", request.method, request.path, type(error).__name__, _place(error))
            return errors.internal().response(native=native)

    def _has_key(self, request: web.Request) -> bool:
        return self.keys.accepts(request.headers.getall("Authorization", []), request.headers.getall("x-api-key", []))

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(self, _: web.Request) -> web.Response:
        if self.draining:
            return web.json_response({"status": "draining"}, status=503)
        # Before the first round a new pod would refuse models whose servers it has only not looked up yet.
        looked = all(upstream.looked for upstream in self.upstreams.values())
        # One that holds requests is of use without any server behind it.
        if not looked or not (self.settings.hold_s or any(upstream.answers for upstream in self.upstreams.values())):
            return web.json_response({"status": "no upstream answers"}, status=503)
        return web.json_response({"status": "ready"})
