"""The metric catalogue, and the listener that serves it apart from the clients' port."""

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api_server.upstreams import Upstream

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)


class Metrics(Collector):
    def __init__(self, upstreams: list[Upstream]) -> None:
        self.registry = CollectorRegistry()
        self._upstreams = upstreams
        self.requests = Counter("api_server_requests", "Answered requests", ["model", "status"], registry=self.registry)
        self.first_byte = Histogram(
            "api_server_time_to_first_byte_seconds",
            "From the request's arrival to the first byte of an upstream's body",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "api_server_request_duration_seconds", "Whole requests", ["model"], buckets=_SECONDS, registry=self.registry
        )  # fmt: skip
        self.upstream_errors = Counter(
            "api_server_upstream_errors", "Failed attempts by reason", ["upstream", "reason"], registry=self.registry
        )  # fmt: skip
        self.registry.register(self)

    def collect(self) -> list[Metric]:
        in_flight = GaugeMetricFamily("api_server_in_flight_requests", "Requests that an address works on", labels=["upstream", "address"])
        up = GaugeMetricFamily("api_server_upstream_up", "Whether the address accepts connections", labels=["upstream", "address"])
        for upstream in self._upstreams:
            for address in upstream.addresses.values():
                in_flight.add_metric([upstream.url, address.host], address.in_flight)
                up.add_metric([upstream.url, address.host], float(address.answers))
        return [in_flight, up]

    def app(self) -> web.Application:
        async def show(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(self.registry), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

        app = web.Application()
        app.router.add_get("/metrics", show)
        return app
