"""Read-only lists: the models that clients may use, in OpenAI's and in Ollama's form, as the whole fleet has them."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
from aiohttp import web

from api_server import errors, requests
from api_server.abilities import UNKNOWN
from api_server.address import Address, tagged
from api_server.intake import Intake
from api_server.limits import ACCOUNT
from api_server.paths import INFERENCE
from api_server.reading import LATE_OR_STRANGE, document
from api_server.routing import Routing
from api_server.sending import Sender
from api_server.settings import Route
from api_server.upstreams import Upstream

_TIMEOUT = aiohttp.ClientTimeout(total=10)


class Listings:
    def __init__(
        self, routing: Routing, upstreams: dict[str, Upstream], sender: Sender, intake: Intake, session: aiohttp.ClientSession
    ) -> None:
        self._routing = routing
        self._upstreams = upstreams
        self._sender = sender
        self._intake = intake
        self._session = session

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self.models, allow_head=False)
        app.router.add_get("/v1/models/{model:.+}", self.model, allow_head=False)
        app.router.add_get("/api/tags", self.tags)
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/api/ps", self.ps, allow_head=False)
        app.router.add_post("/api/show", self.show)

    def _seen(self, request: web.Request) -> Routing:
        """What the request's key sees."""
        return self._routing.seen_by(request[ACCOUNT].key.grant.models)

    async def models(self, request: web.Request) -> web.Response:
        seen = self._seen(request)
        entries = await asyncio.gather(*(self._named(name, seen) for name in seen.targets()))
        return web.json_response({"object": "list", "data": entries})

    async def model(self, request: web.Request) -> web.Response:
        return web.json_response(await self._named(request.match_info["model"], self._seen(request)))

    async def _named(self, name: str, seen: Routing) -> dict[str, Any]:
        """The entry of a model, or of an alias, which says what it stands for by vLLM's name for that. Raises ApiError."""
        alias = seen.aliases.get(name)
        if alias is None:
            return await self._openai(*seen.find(name, native=False))
        entries = await asyncio.gather(*(self._openai(model, route) for model, route in seen.behind(alias)))
        # A conversation may get any of them: it can rely on what all of them have.
        least = min(entries, key=lambda entry: entry.get("context_length", 0))
        can = [set(entry["capabilities"]) for entry in entries if "capabilities" in entry]
        common = {"capabilities": sorted(set.intersection(*can))} if len(can) == len(entries) else {}
        return {**least, **common, "id": name, "root": alias.models[0]}

    async def _openai(self, model: str, route: Route) -> dict[str, Any]:
        """The entry of a list. Clients read the context's length by either of two names: Cline and vLLM's say max_model_len, OpenRouter's
        say context_length. A server of another kind than Ollama is asked for it."""
        address = next(
            (
                each
                for each in self._upstreams[route.url].addresses.values()
                if each.answers and each.has(route.model or model, route.digest)
            ),
            None,
        )
        found = await self._sender.abilities(address, model, route) if address is not None else UNKNOWN
        entry: dict[str, Any] = {"id": model, "object": "model", "created": 0, "owned_by": "modelfleet"}
        if length := route.context_length or found.context_length:
            entry |= {"context_length": length, "max_model_len": length}
        return entry if found.known is None else entry | {"capabilities": sorted(found.known)}

    async def tags(self, request: web.Request) -> web.Response:
        await self._look()
        return web.json_response({"models": list(self._fleet(self._seen(request), lambda address: address.store or {}))})

    async def ps(self, request: web.Request) -> web.Response:
        """Each loaded model once, from the server that holds the shortest context for it."""
        await self._look()
        return web.json_response({"models": list(self._fleet(self._seen(request), lambda address: address.loaded))})

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
        with self._intake.claim() as claim:
            payload = requests.document(await self._intake.read(request, claim))
        name = payload.get("model") or payload.get("name")
        if not isinstance(name, str):
            raise errors.bad_request("model: got nothing, want a model's name; see GET /api/tags")
        model, route = self._seen(request).find(name, native=True)
        body = {"model": route.model or model, "verbose": bool(payload.get("verbose"))}
        return web.json_response(await self._ask("POST", "/api/show", body, route, model))

    def _fleet(self, seen: Routing, part: Callable[[Address], Any]) -> Iterator[dict[str, Any]]:
        for called, (model, route) in seen.targets().items():
            if route.engine != "ollama":
                continue
            name = tagged(route.model or model)
            entries = [part(address)[name] for address in self._upstreams[route.url].addresses.values() if name in part(address)]
            if entries:
                yield min(entries, key=lambda entry: entry.get("context_length", 0)) | {"name": called, "model": called}

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
                    url = address.url + path
                    async with self._session.request(method, url, json=body, timeout=_TIMEOUT, allow_redirects=False) as response:
                        return dict(await document(response))
                except LATE_OR_STRANGE:
                    continue
        raise errors.unavailable(model or "ollama", 2)


ALLOWED = [
    "GET /",
    *(f"POST {path}" for path in INFERENCE),
    "GET /v1/models",
    "GET /api/tags",
    "GET /api/version",
    "GET /api/ps",
    "POST /api/show",
    "GET /openapi.json",
    "GET /fleet",
]
