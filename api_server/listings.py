"""Read-only lists: the models that clients may use, in OpenAI's and in Ollama's form, as the whole fleet has them."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
from aiohttp import web

from api_server import errors, requests
from api_server.proxy import Proxy
from api_server.settings import Route, Settings
from api_server.upstreams import LATE_OR_STRANGE, Address, Upstream, tagged

_TIMEOUT = aiohttp.ClientTimeout(total=10)


class Listings:
    def __init__(self, settings: Settings, upstreams: dict[str, Upstream], proxy: Proxy, session: aiohttp.ClientSession) -> None:
        self._routes = settings.routes
        self._upstreams = upstreams
        self._proxy = proxy
        self._session = session

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self.models, allow_head=False)
        app.router.add_get("/v1/models/{model:.+}", self.model, allow_head=False)
        app.router.add_get("/api/tags", self.tags)
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/api/ps", self.ps, allow_head=False)
        app.router.add_post("/api/show", self.show)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [_openai(model) for model in self._routes]})

    async def model(self, request: web.Request) -> web.Response:
        model, _ = self._proxy.route(request.match_info["model"], native=False)
        return web.json_response(_openai(model))

    async def tags(self, _: web.Request) -> web.Response:
        await self._look()
        return web.json_response({"models": list(self._fleet(lambda address: address.store or {}))})

    async def ps(self, _: web.Request) -> web.Response:
        """Each loaded model once, from the server that holds the shortest context for it."""
        await self._look()
        return web.json_response({"models": list(self._fleet(lambda address: address.loaded))})

    async def _look(self) -> None:
        """Have the lists as they are now. A server that does not answer keeps its last one."""
        addresses = [
            address for upstream in self._upstreams.values() if upstream.engine == "ollama" for address in upstream.addresses.values()
        ]

        async def look(address: Address) -> None:
            with contextlib.suppress(*LATE_OR_STRANGE):
                await address.look(self._session)

        await asyncio.gather(*(look(address) for address in addresses if address.answers))

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response(await self._ask("GET", "/api/version"))

    async def show(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            payload = json.loads(body)
        except ValueError:
            payload = None
        name = (payload.get("model") or payload.get("name")) if isinstance(payload, dict) else None
        if not isinstance(name, str):
            raise errors.bad_request("model: got nothing, want a model's name; see GET /api/tags")
        model, route = self._proxy.route(name, native=True)
        verbose = {"verbose": bool(payload.get("verbose"))} if isinstance(payload, dict) else {}
        return web.json_response(await self._ask("POST", "/api/show", {"model": route.model or model} | verbose, route, model))

    def _fleet(self, part: Callable[[Address], Any]) -> Iterator[dict[str, Any]]:
        for model, route in self._routes.items():
            if route.engine != "ollama":
                continue
            name = tagged(route.model or model)
            entries = [part(address)[name] for address in self._upstreams[route.url].addresses.values() if name in part(address)]
            if entries:
                yield min(entries, key=lambda entry: entry.get("context_length", 0)) | {"name": model, "model": model}

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, route: Route | None = None, model: str = ""
    ) -> dict[str, Any]:
        """The first answer of any server, or of one that has the model. Raises ApiError."""
        for upstream in self._upstreams.values():
            if upstream.engine != "ollama" or (route is not None and route.url != upstream.url):
                continue
            for address in upstream.addresses.values():
                if not address.answers or (route is not None and not address.has(route.model or model, route.digest)):
                    continue
                try:
                    async with self._session.request(method, address.url + path, json=body, timeout=_TIMEOUT) as response:
                        if response.status == 200:
                            return await response.json()
                except (aiohttp.ClientError, TimeoutError):
                    continue
        raise errors.unavailable(model or "ollama", 2)


def _openai(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "modelfleet"}


ALLOWED = [
    *(f"POST {path}" for path in requests.INFERENCE),
    "GET /v1/models",
    "GET /api/tags",
    "GET /api/version",
    "GET /api/ps",
    "POST /api/show",
]
