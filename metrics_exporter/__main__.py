"""`python -m metrics_exporter`: serve /metrics and /health until SIGTERM. Everything is read at the scrape."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable

import redis.asyncio
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from metrics_exporter.nvml import Nvml
from metrics_exporter.settings import Settings, SettingsError
from metrics_exporter.targets import cache_metrics

log = logging.getLogger("metrics_exporter")


class _Once(Collector):
    """What one scrape found."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families


class Exporter:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._nvml = Nvml(settings.node) if settings.nvml else None
        password_file = settings.cache_password_file
        self._cache: redis.asyncio.Redis | None = None
        if settings.cache_url:
            self._cache = redis.asyncio.Redis.from_url(
                settings.cache_url, password=password_file.read_text().strip() if password_file else None, retry=None
            )

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/health", self.health)
        app.cleanup_ctx.append(self._run)
        return app

    async def _run(self, _: web.Application) -> AsyncIterator[None]:
        if self._nvml is not None:
            await asyncio.to_thread(self._nvml.collect)
        yield
        if self._cache is not None:
            await self._cache.aclose()

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def metrics(self, _: web.Request) -> web.Response:
        timeout_s = self.settings.timeout_s
        reads: list[asyncio.Task[list[Metric]]] = []
        if self._nvml is not None:
            reads.append(asyncio.create_task(asyncio.to_thread(self._nvml.collect)))
        if self._cache is not None:
            reads.append(asyncio.create_task(cache_metrics(self._cache, timeout_s)))
        registry = CollectorRegistry()
        registry.register(_Once(family for families in await asyncio.gather(*reads) for family in families))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(Exporter(settings).app(), access_log=None, shutdown_timeout=5)
    await runner.setup()
    await web.TCPSite(runner, settings.host, settings.port).start()
    log.info("metrics on port %d", settings.port)
    await stop.wait()
    await runner.cleanup()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(Settings.from_env(os.environ)))
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
