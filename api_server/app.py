"""The process: its routes, its keys, and what it keeps running."""

import asyncio
import json
import logging
import secrets
import traceback
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from api_server import cors, errors, openapi, page
from api_server.aliases import Aliases
from api_server.connections import Connection, Connections, most_connections
from api_server.embeddings import Embeddings
from api_server.fleet import View
from api_server.intake import Budget, Intake, memory
from api_server.keys import Keys
from api_server.limits import ACCOUNT, Account, Limits
from api_server.listings import ALLOWED, Listings
from api_server.metrics import Metrics
from api_server.paths import INFERENCE, api_of
from api_server.peers import Peers
from api_server.pools import Pool, PoolKeys
from api_server.proxy import Proxy
from api_server.routing import Routing
from api_server.sending import Sender
from api_server.sessions import Sessions
from api_server.settings import Settings
from api_server.settling import Settler
from api_server.tls import Certificate
from api_server.upstreams import Upstream

_MIN_VALUES = 50_000
"""JSON values of a request, where the longest context is not known or short: long lists to embed, large schemas of tools."""
_KEYLESS = (*page.PATHS, "/health", "/ready")

log = logging.getLogger("api_server")


def _place(error: BaseException) -> str:
    """File and line where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


async def _shape(_: web.Request, response: web.StreamResponse) -> None:
    """What aiohttp says before a request reaches us, as of an Expect that it does not know, in the shape of every other error."""
    if isinstance(response, web.HTTPException):
        body = json.dumps(errors.no_http(response.status, response.reason).body).encode()
        response.body = body
        response.content_type = "application/json"
        response.headers["Content-Length"] = str(len(body))


class ApiServer:
    """State of one process."""

    def __init__(
        self, settings: Settings, keys: Keys, aliases: Aliases, session: aiohttp.ClientSession, certificate: Certificate | None = None
    ) -> None:
        self.settings = settings
        self.certificate = certificate
        self.keys = keys
        self._routing = Routing(settings.routes, aliases)
        self.draining = False
        self.stop = asyncio.Event()
        """Set when the process shall end."""
        self.failed = False
        """Whether that is because something that must run for ever has ended."""
        self.upstreams: dict[str, Upstream] = {}
        pool_keys = PoolKeys(settings.pool_keys_file)
        for route in settings.routes.values():
            if (upstream := self.upstreams.get(route.url)) is None:
                pool, lines = Pool(route, pool_keys) if route.pool else None, settings.queue_s > 0
                upstream = Upstream(route.url, route.max_in_flight, route.engine, settings.server_silence_s, pool, lines=lines)
                self.upstreams[route.url] = upstream
            # Two models behind one server share what it can do.
            upstream.max_in_flight = min(upstream.max_in_flight, route.max_in_flight)
        memory_bytes = settings.memory_bytes or memory()
        budget = Budget(memory_bytes)
        most = most_connections(memory_bytes, settings.max_connections, secured=certificate is not None)
        self.connections = Connections(most, settings.head_s)
        peers = Peers(secrets.token_bytes(8), settings.gateways)
        self._limits = Limits(max(1, self.connections.most // 2), peers)
        self._settler = Settler(settings, self.upstreams, self._limits, peers, lambda: self.draining) if settings.cache_url else None
        self.metrics = Metrics(list(self.upstreams.values()), settings.routes, lambda: budget.used, peers, certificate)
        self._session = session
        sessions = Sessions(settings.session_headers, settings.cache_password.encode())
        self._sender = Sender(self.metrics, session, sessions.headers)
        longest = max(route.context_length for route in settings.routes.values())
        # Each value of a prompt is at least one token, and a request has a few values beside.
        self._intake = Intake(budget, settings.max_body_bytes, max(_MIN_VALUES, 2 * longest), settings.body_s)
        embeddings = Embeddings(settings) if settings.cache_url else None
        self._proxy = Proxy(settings, self._routing, self.upstreams, self.metrics, self._sender, self._intake, sessions, embeddings)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware])
        app.on_response_prepare.append(_shape)
        cors.allow(app, self.settings.cors_origins)
        for path in INFERENCE:
            app.router.add_post(path, self._proxy.infer)
        Listings(self._routing, self.upstreams, self._sender, self._intake, self._session).add_to(app)
        openapi.add_to(app, self._routing)
        View(self._routing, self.upstreams, self.metrics, self._sender).add_to(app)
        page.add_to(app)
        app.router.add_get("/health", self.health)
        app.router.add_get("/ready", self.ready)
        app.cleanup_ctx.append(self._run)
        return app

    async def _run(self, _: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(upstream.run(self._session), name=f"look-up of {url}") for url, upstream in self.upstreams.items()]
        if self._settler is not None:
            tasks.append(asyncio.create_task(self._settler.run(), name="agreement with other API servers"))
        for task in tasks:
            task.add_done_callback(self._ended)
        yield
        for task in tasks:
            task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A gateway whose look-ups have ended would send requests to where servers were."""
        if task.cancelled():
            return
        error = task.exception()
        why = "no error" if error is None else f"{type(error).__name__} at {_place(error)}"
        log.error("%s: got its end (%s), want it to run for ever; ending, so that the process is started again", task.get_name(), why)
        self.failed = True
        self.stop.set()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """What every request has: an answer in one shape, and an end on its connection."""
        try:
            response = await self._answer(request, handler)
            if not request.content.is_eof():
                # The rest of a body that nobody will read.
                response.force_close()
            return response
        finally:
            if isinstance(connection := request.protocol, Connection):
                connection.answered(request)

    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Keys for everything but the probes, and one shape for every error of an API."""
        api = api_of(request.path)
        try:
            if request.path in _KEYLESS:
                return await handler(request)
            request[ACCOUNT] = account = self._account(request)
            with account:
                return await handler(request)
        except errors.ApiError as error:
            return error.response(api)
        except web.HTTPException as error:
            message = f"{request.method} {request.path}: got {error.reason}, want one of {', '.join(ALLOWED)}; correct the path"
            # Those of Ollama's paths that are closed have OpenAI's shape: no client of Ollama's gets that far.
            return errors.ApiError(error.status, "invalid_request_error", message).response("openai" if api == "ollama" else api)
        except ConnectionResetError:
            raise  # the client has left
        except Exception as error:
            # Nobody may see a page without a shape. The line says what to report, without the request's own words.
            log.error("%s %s: %s at %s", request.method, request.path, type(error).__name__, _place(error))
            return errors.internal().response(api)

    def _account(self, request: web.Request) -> Account:
        """Of the request's key. Raises ApiError without one, and beyond what the key may use."""
        key = self.keys.holder(request.headers.getall("Authorization", []), request.headers.getall("x-api-key", []))
        try:
            return self._limits.admitted(key)
        except errors.ApiError as refusal:
            # Before anything of the request is read.
            self.metrics.asked(key.name, "unknown", refusal.status)
            raise

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
