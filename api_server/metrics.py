"""The metric catalogue, and the listener that serves it apart from the clients' port."""

import functools
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from api_server import fields
from api_server.demand import LEAVING_S, Demand, demand_of, needed_by
from api_server.peers import Peers
from api_server.place import Place
from api_server.readers import Readers
from api_server.settings import Route
from api_server.spending import Spent, Usage
from api_server.tls import Certificate
from api_server.upstreams import Upstream
from api_server.usage import Reader

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_RATES = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 400)


T = TypeVar("T", bound=MetricWrapperBase)


def _series(metric: T, *labels: str) -> T:
    return metric.labels(*labels)


class Metrics(Collector):
    def __init__(
        self,
        upstreams: list[Upstream],
        routes: Mapping[str, Route],
        reserved: Callable[[], int],
        peers: Peers,
        certificate: Certificate | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._peers = peers
        self._upstreams = upstreams
        self._reserved = reserved
        self.readers = Readers()
        self._certificate = certificate
        self._routes = routes
        self.waiting = Tally(dict.fromkeys(routes, 0))
        """Requests, by model, that wait for a place."""
        self.requests = Counter("api_server_requests", "Answered requests", ["model", "status"], registry=self.registry)
        self.prompt_tokens = Counter("api_server_prompt_tokens", "Tokens of prompts, as servers count", ["model"], registry=self.registry)
        self.completion_tokens = Counter(
            "api_server_completion_tokens", "Tokens of answers, as servers count", ["model"], registry=self.registry
        )  # fmt: skip
        self.key_requests = Counter(
            "api_server_key_requests", "Answered requests, by who asked", ["key", "model", "status"], registry=self.registry
        )  # fmt: skip
        self.first_token = self._histogram("api_server_time_to_first_token_seconds", "From arrival to a stream's first event", _SECONDS)
        self.token_rate = self._histogram("api_server_tokens_per_second", "Tokens of a streamed answer, after its first, by second", _RATES)
        self.duration = self._histogram("api_server_request_duration_seconds", "Whole requests", _SECONDS)
        self.held = self._histogram("api_server_held_seconds", "Wait of requests that found no place", _SECONDS)
        self.counted = Counter(
            "api_server_counted_prompts", "Prompts that a server had to count", ["model"], registry=self.registry
        )  # fmt: skip
        self.too_long = Counter(
            "api_server_context_refusals", "Requests refused because they do not fit the context", ["model"], registry=self.registry
        )  # fmt: skip
        self.dropped = Counter(
            "api_server_dropped_fields", "Fields of requests that no server of the model takes", ["model", "field"], registry=self.registry
        )  # fmt: skip
        self.upstream_errors = Counter(
            "api_server_upstream_errors", "Failed attempts by reason", ["upstream", "reason"], registry=self.registry
        )  # fmt: skip
        self.embeddings = Counter(
            "api_server_embeddings", "Texts to embed, by whether it was done before", ["model", "outcome"], registry=self.registry
        )  # fmt: skip
        self.saved = Counter(
            "api_server_saved_seconds", "Time of servers that embeddings took which were there", ["model", "tier"], registry=self.registry
        )  # fmt: skip
        self.turns = self._of_turns("api_server_turns", "Requests by why their server was chosen")
        self.reusable = self._of_turns(
            "api_server_reusable_tokens", "Tokens of prompts that a server had read before, where servers say what they used"
        )
        self.cached = self._of_turns("api_server_cached_tokens", "Tokens of prompts that servers took from their caches, as they say")
        self._used: dict[str, dict[str, Usage]] = {}
        """Of each key, by model."""
        self._begun = time.time()
        """Who adds up what keys used knows by it that a process is another one, also where its numbers are higher than those before."""
        self.registry.register(self)
        self.of = functools.lru_cache(maxsize=4096)(_series)
        """The series of a metric with these labels. The library's own way to it costs more than to count in it."""

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ["model"], buckets=buckets, registry=self.registry)

    def _of_turns(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model", "reason"], registry=self.registry)

    def turned(self, model: str, place: Place, reader: Reader, *, says: bool) -> None:
        """Count a turn that a server took on, and what of its prompt the server had kept. Only where the server `says` that can the two be
        compared: Ollama says nothing, or 0."""
        self.of(self.turns, model, place.reason).inc()
        if says and reader.cached_tokens is not None:
            self.of(self.reusable, model, place.reason).inc(min(place.reusable, reader.prompt_tokens))
            # Who answers a pool may say anything.
            self.of(self.cached, model, place.reason).inc(min(reader.cached_tokens, reader.prompt_tokens))

    def embedded(self, model: str, found: int, count: int, saved_s: float) -> None:
        """Count texts of which so many were embedded before, which took so long then."""
        self.of(self.saved, model, "embeddings").inc(saved_s)
        for outcome, amount in (("found", found), ("made", count - found)):
            self.of(self.embeddings, model, outcome).inc(amount)

    def left_out(self, model: str, names: Iterable[str]) -> None:
        """Count fields that were dropped from a request."""
        for name in names:
            self.dropped.labels(model, fields.label(name)).inc()

    def answered(self, model: str, reader: Reader, started: float) -> None:
        """Count what an answer used, as far as its server said."""
        self.of(self.prompt_tokens, model).inc(reader.prompt_tokens)
        self.of(self.completion_tokens, model).inc(reader.completion_tokens)
        if reader.first is None:
            return
        self.of(self.first_token, model).observe(reader.first - started)
        elapsed = time.monotonic() - reader.first
        if reader.completion_tokens > 1 and elapsed > 0:
            self.of(self.token_rate, model).observe((reader.completion_tokens - 1) / elapsed)

    def asked(self, key: str, model: str, status: int) -> None:
        """Count a request of a key."""
        self.of(self.key_requests, key, model, str(status)).inc()
        self._use(key, model).requests += 1

    def used_by(self, key: str) -> list[Usage]:
        """By model, since the start."""
        return [use for _, use in sorted(self._used.get(key, {}).items())]

    def _use(self, key: str, model: str) -> Usage:
        of_key = self._used.setdefault(key, {})
        if (use := of_key.get(model)) is None:
            use = of_key[model] = Usage(model=model)
        return use

    def spent(self, key: str, model: str, tokens: Spent, server_s: float = 0.0) -> None:
        """Count what a key has used, and how long servers were at work for it."""
        use = self._use(key, model)
        use.prompt_tokens += tokens.prompt
        use.cached_tokens += tokens.cached
        use.completion_tokens += tokens.completion
        use.server_seconds += server_s

    def collect(self) -> list[Metric]:
        in_flight = GaugeMetricFamily("api_server_in_flight_requests", "Requests that an address works on", labels=["upstream", "address"])
        out = GaugeMetricFamily(
            "api_server_upstream_out", "Whether the address gets no requests, as it failed", labels=["upstream", "address"]
        )
        up = GaugeMetricFamily("api_server_upstream_up", "Whether the address accepts connections", labels=["upstream", "address"])
        waiting = GaugeMetricFamily(
            "api_server_waiting_requests", "Requests that wait for a place, at servers that are busy or not there yet", labels=["model"]
        )
        held = GaugeMetricFamily(
            "api_server_held_tokens", "Tokens of conversations that servers hold, by what this process knows", labels=["model"]
        )
        reserved = GaugeMetricFamily("api_server_reserved_bytes", "Memory that bodies of requests in flight may take")
        reserved.add_metric([], self._reserved())
        gateways = GaugeMetricFamily("api_server_gateways", "API servers that take requests, with this one, as far as it knows")
        gateways.add_metric([], self._peers.count)
        agrees = GaugeMetricFamily("api_server_agrees", "Whether it knows what the other API servers do")
        agrees.add_metric([], float(self._peers.agree))
        for upstream in self._upstreams:
            for address in upstream.addresses.values():
                in_flight.add_metric([upstream.url, address.host], address.in_flight)
                up.add_metric([upstream.url, address.host], float(address.answers))
                out.add_metric([upstream.url, address.host], float(address.is_out()))
            for model, conversations in upstream.conversations.items():
                held.add_metric([model], sum(conversations.held.values()) / conversations.density.bytes_per_token)
        needs = GaugeMetricFamily(
            "api_server_needed_servers", "Servers of the fleet that conversations and requests need, by what it knows"
        )
        if (fleet := self.demand()) is not None:
            needs.add_metric([], needed_by(fleet))
        for model, count in self.waiting.items():
            waiting.add_metric([model], count)
        return [in_flight, up, out, waiting, held, needs, reserved, gateways, agrees, *self._of_keys(), *self._of_certificate()]

    def _of_keys(self) -> list[Metric]:
        tokens = CounterMetricFamily("api_server_key_tokens", "Tokens, by who asked and what they were", labels=["key", "model", "kind"])
        seconds = CounterMetricFamily("api_server_key_server_seconds", "Time that servers worked, by who asked", labels=["key", "model"])
        for key, by_model in self._used.items():
            for model, use in by_model.items():
                amounts = {"prompt": use.prompt_tokens, "cached": use.cached_tokens, "completion": use.completion_tokens}
                for kind, amount in amounts.items():
                    if amount:
                        tokens.add_metric([key, model, kind], amount, self._begun)
                seconds.add_metric([key, model], use.server_seconds, self._begun)
        return [tokens, seconds]

    def _of_certificate(self) -> list[Metric]:
        """Without values where there is none."""
        start = GaugeMetricFamily("api_server_certificate_start_timestamp_seconds", "When the certificate became valid")
        expiry = GaugeMetricFamily("api_server_certificate_expiry_timestamp_seconds", "When the certificate ends")
        failures = CounterMetricFamily("api_server_certificate_reload_failures", "Looks at a certificate that could not be taken")
        if self._certificate is not None:
            # Also where no client comes.
            self._certificate.now()
            start.add_metric([], self._certificate.served.not_before)
            expiry.add_metric([], self._certificate.served.not_after)
            failures.add_metric([], self._certificate.failures)
        return [start, expiry, failures]

    def demand(self, host: str = "") -> Demand | None:
        """What whoever scales the servers at a host has to know, or the Ollama fleet without one. None: there are no such servers."""
        ours = [each for each in self._upstreams if each.pool is None and (each.host == host if host else each.engine == "ollama")]
        urls = {upstream.url for upstream in ours}
        routes = {model: route for model, route in self._routes.items() if route.url in urls}
        return demand_of(sum(self.waiting[model] for model in routes), ours, routes) if ours else None

    def app(self) -> web.Application:
        # To compress the numbers of many keys, which are megabytes, would hold up every stream of this process.
        shown = make_aiohttp_handler(self.registry, disable_compression=True)

        async def show(request: web.Request) -> web.StreamResponse:
            response = await shown(request)
            self.readers.read(request.remote or "")
            return response

        async def demand(request: web.Request) -> web.Response:
            if host := request.query.get("leaving"):
                for upstream in self._upstreams:
                    upstream.leave(host, LEAVING_S)
            found = self.demand(request.match_info.get("host", ""))
            if found is None:
                return web.Response(status=404)
            return web.Response(text=found.model_dump_json(), content_type="application/json")

        app = web.Application()
        app.router.add_get("/metrics", show)
        app.router.add_get("/demand", demand)
        app.router.add_get("/demand/{host}", demand)
        return app
