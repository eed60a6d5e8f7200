"""`python -m metrics_exporter`: serve /metrics and /health until SIGTERM. Everything is read at the scrape."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import redis.asyncio
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from metrics_exporter.driver import Driver
from metrics_exporter.nvml import Nvml
from metrics_exporter.scan import Scan
from metrics_exporter.settings import Settings, SettingsError
from metrics_exporter.targets import cache_metrics

log = logging.getLogger("metrics_exporter")


class _Latest(Collector):
    """What the last look at the targets found."""

    def __init__(self) -> None:
        self.families: list[Metric] = []

    def collect(self) -> list[Metric]:
        return self.families


class Exporter:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._driver = Driver(settings.node, Nvml(settings.node).collect, settings.timeout_s) if settings.nvml else None
        password_file = settings.cache_password_file
        self._cache: redis.asyncio.Redis | None = None
        if settings.cache_url:
            self._cache = redis.asyncio.Redis.from_url(
                settings.cache_url, password=password_file.read_text().strip() if password_file else None, retry=None
            )
        self._scan = Scan(settings.scan_file) if settings.scan_file else None
        self._latest = _Latest()
        registry = CollectorRegistry()
        registry.register(self._latest)
        self._handler = make_aiohttp_handler(registry)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/health", self.health)
        app.cleanup_ctx.append(self._run)
        return app

    async def _run(self, _: web.Application) -> AsyncIterator[None]:
        await self._look()
        yield
        if self._cache is not None:
            await self._cache.aclose()

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        await self._look()
        return await self._handler(request)

    async def _look(self) -> None:
        """At all targets at once; each has its own time, and fails alone."""
        reads: list[Coroutine[Any, Any, list[Metric]]] = []
        if self._driver is not None:
            reads.append(self._driver.read())
        if self._cache is not None:
            reads.append(cache_metrics(self._cache, self.settings.timeout_s))
        if self._scan is not None:
            reads.append(self._scan.read())
        self._latest.families = [family for families in await asyncio.gather(*reads) for family in families]


async def serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        Exporter(settings).app(), access_log=None, shutdown_timeout=5, keepalive_timeout=settings.head_s, auto_decompress=False
    )
    await runner.setup()
    await web.TCPSite(runner, settings.host, settings.port).start()
    log.info("metrics on port %d", settings.port)
    await stop.wait()
    await runner.cleanup()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # What is no HTTP is said to who sent it, and needs no traceback here.
    logging.getLogger("aiohttp.server").addFilter(lambda record: not isinstance((record.exc_info or (0, 0))[1], HttpProcessingError))
    try:
        settings = Settings.read()
        logging.getLogger().setLevel(settings.log_level.upper())
        asyncio.run(serve(settings))
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
