"""What people want to know before they use the fleet, and while they do, at GET /fleet; the page shows it.

It is what this gateway knows, of what a key may use: its models, and its own use of them. Of others there is only how much of the servers
they take, without a name.
"""

import asyncio
import time
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from aiohttp import web

from api_server.abilities import UNKNOWN
from api_server.address import Address, tagged
from api_server.bindings import SMALL, Bindings
from api_server.keys import Key
from api_server.limits import ACCOUNT
from api_server.metrics import Metrics
from api_server.page import UNKEPT
from api_server.paths import encode
from api_server.routing import Routing
from api_server.sending import Sender
from api_server.settings import Route
from api_server.spending import Usage
from api_server.upstreams import Upstream


class Replica(msgspec.Struct, kw_only=True):
    """A server that has the model, or should have it, by its place in the order of their addresses."""

    ready: bool
    reason: str
    """Why it is not ready; or, of one that is, what a request should know. Empty: nothing."""
    in_flight: int
    """Requests of this gateway that it works on, with any model."""
    places: int
    """Such requests at once, at most: less than the server takes while other gateways use some of it, or it was out just now."""
    conversations: int
    """Whose prompts it holds, with this model."""
    tokens: int
    """Of these prompts, about."""


class Model(msgspec.Struct, kw_only=True):
    id: str
    named: bool
    """Whether the key may ask for it by this id; otherwise by one of `aliases` alone."""
    aliases: list[str]
    """That lead to it now."""
    context_length: int | None
    """Tokens of a prompt with its answer; null: its server did not say."""
    abilities: list[str] | None
    """In Ollama's words: `completion`, `tools`, `thinking`, `vision`, `embedding`, …; null: its server did not say."""
    waiting: int
    """Requests of this gateway that wait for a place."""
    slots: int | None
    """Conversations that one replica keeps in any case; null: not known."""
    warm_conversations: int | None
    """That the replicas that are ready keep, each of full context; null: not known."""
    warm_conversations_now: int | None
    """The same, each of the mean length of those that are held now; null: not known, or none is held."""
    turns_per_minute: float | None
    """Of warm conversations, that the replicas that are ready answer at most; null: no speed was measured."""
    replicas: list[Replica]


class OtherName(msgspec.Struct, kw_only=True):
    """An alias: `share` percent of the conversations go to `next`, the others to `model`."""

    name: str
    model: str
    next: str | None
    share: int


class Limits(msgspec.Struct, kw_only=True):
    """Of a key. Null: none of its own."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None


class OwnKey(msgspec.Struct, kw_only=True):
    """The key that asks."""

    name: str
    owner: str
    expires: str | None
    models: list[str]
    """Names that it sees; empty: all."""
    limits: Limits
    usage: list[Usage]


class Fleet(msgspec.Struct, kw_only=True):
    started: str
    """When this gateway started to count."""
    in_flight: int
    """Requests of this gateway at work, on the servers of these models."""
    key: OwnKey
    models: list[Model]
    aliases: list[OtherName]


class View:
    """Answers GET /fleet."""

    def __init__(self, routing: Routing, upstreams: dict[str, Upstream], metrics: Metrics, sender: Sender) -> None:
        self._routing = routing
        self._upstreams = upstreams
        self._metrics = metrics
        self._sender = sender
        self._started = datetime.now(UTC).isoformat(timespec="seconds")

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/fleet", self.show, allow_head=False)

    async def show(self, request: web.Request) -> web.Response:
        key = request[ACCOUNT].key
        seen = self._routing.seen_by(key.grant.models)
        aliases = seen.aliases
        # An alias may lead to a model that the key does not see by its own name.
        behind = {model: route for alias in aliases.values() for model, route in seen.behind(alias)}
        routes = {**seen.routes, **behind}
        found = Fleet(
            started=self._started,
            in_flight=sum(
                each.in_flight for url in {route.url for route in routes.values()} for each in self._upstreams[url].addresses.values()
            ),
            key=own(key, self._metrics.used_by(key.name)),
            models=await asyncio.gather(*(self._model(model, route, seen) for model, route in routes.items())),
            aliases=[
                OtherName(name=name, model=alias.model, next=alias.next if alias.share else None, share=alias.share)
                for name, alias in aliases.items()
            ],
        )
        return web.Response(body=encode(found), content_type="application/json", headers=UNKEPT)

    async def _model(self, model: str, route: Route, seen: Routing) -> Model:
        upstream = self._upstreams[route.url]
        conversations = upstream.conversations[model]
        conversations.expire()
        addresses = [address for _, address in sorted(upstream.addresses.items())]
        replicas = [replica(address, upstream, model, route, conversations) for address in addresses]
        ready = [address for address, found in zip(addresses, replicas, strict=True) if found.ready]
        known = await self._sender.abilities(ready[0], model, route) if ready else UNKNOWN
        length = route.context_length or known.context_length
        return Model(
            id=model,
            named=model in seen.routes,
            aliases=[name for name, alias in seen.aliases.items() if model in alias.models],
            context_length=length or None,
            abilities=None if known.known is None else sorted(known.known),
            waiting=self._metrics.waiting[model],
            slots=route.slots or None,
            warm_conversations=warm(route, len(ready), length),
            warm_conversations_now=warm(route, len(ready), _mean(conversations)),
            turns_per_minute=turns(route, len(ready)),
            replicas=replicas,
        )


def warm(route: Route, replicas: int, tokens: float) -> int | None:
    """Conversations of so many tokens that replicas keep, in slots and in the cache, as infra's Capacity counts. None: what they keep, or
    how long the conversations are, is not known."""
    if not (route.slots and tokens):
        return None
    return replicas * (route.slots - 1 + max(1, int(route.cached_tokens // tokens)))


def turns(route: Route, replicas: int) -> float | None:
    """Of warm conversations, that replicas answer in a minute, as infra's Capacity counts. None: their speed was not measured."""
    return None if route.turns_per_hour is None else round(replicas * route.turns_per_hour / 60, 1)


def _mean(conversations: Bindings) -> float:
    """Tokens of a conversation that a server holds; short ones count as the shortest that take room. 0: none is held."""
    count = sum(conversations.bound.values())
    if not count:
        return 0
    return max(SMALL, sum(conversations.held.values()) / count) / conversations.density.bytes_per_token


def replica(address: Address, upstream: Upstream, model: str, route: Route, conversations: Bindings) -> Replica:
    every = upstream.addresses.values()
    # When most are out, they are asked all the same (servers.py).
    most_out = 2 * sum(each.is_out() for each in every) > len(every)
    reason = _refusal(address, model, route, most_out)
    held = conversations.held.get(address.host, 0)
    return Replica(
        ready=not reason,
        reason=reason or _remark(address, upstream, route.model or model),
        in_flight=address.in_flight,
        places=upstream.allowed(address),
        conversations=conversations.bound.get(address.host, 0),
        tokens=round(held / conversations.density.bytes_per_token),
    )


def _refusal(address: Address, model: str, route: Route, most_out: bool) -> str:
    """Why a server gets no requests with a model; empty when it does."""
    name = route.model or model
    if not address.answers:
        return "it takes no connection"
    if not address.has(name, ""):
        return "it does not have the model"
    if not address.has(name, route.digest):
        return "it has another version of the model"
    if address.is_out() and not most_out:
        return f"it failed or was silent, and gets no requests for {address.out_until - time.monotonic():.0f} s"
    return ""


def _remark(address: Address, upstream: Upstream, name: str) -> str:
    if address.places < upstream.max_in_flight:
        return "it failed or was silent, and gets few requests at once until it answers"
    if upstream.engine == "ollama" and tagged(name) not in address.loaded:
        return "the model is not in its memory, so the next request loads it"
    return ""


def own(key: Key, used: Iterable[Usage]) -> OwnKey:
    grant = key.grant
    return OwnKey(
        name=key.name,
        owner=grant.owner,
        expires=None if grant.expires is None else grant.expires.isoformat(),
        models=sorted(grant.models),
        limits=Limits(
            requests_per_minute=grant.requests_per_minute, tokens_per_minute=grant.tokens_per_minute, concurrency=grant.concurrency
        ),
        usage=list(used),
    )
