"""`python -m ollama_agent`: serve until SIGTERM. `python -m ollama_agent probe`: ask every replica for its contexts, and end."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from ollama_agent.catalog import Catalog
from ollama_agent.context import context
from ollama_agent.engines import Engines
from ollama_agent.metrics import ReplicaCollector
from ollama_agent.ollama import Ollama
from ollama_agent.probe import probe
from ollama_agent.replica import Replica
from ollama_agent.settings import AgentSettings, ProbeSettings, SettingsError

log = logging.getLogger("ollama_agent")


class Agent:
    """Two servers on the pod's address: one that other pods may read, one for the kubelet alone."""

    def __init__(self, settings: AgentSettings) -> None:
        self.settings = settings
        self.replica = Replica(settings, Catalog(settings.catalog))
        registry = CollectorRegistry()
        registry.register(ReplicaCollector(self.replica))
        self._metrics = make_aiohttp_handler(registry)
        self._drain: asyncio.Task[dict[str, float]] | None = None
        self._resume: asyncio.Task[None] | None = None

    def public(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/context", self.context)
        app.cleanup_ctx.append(self._run)
        return app

    def control(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self.health)
        app.router.add_get("/alive", self.alive)
        app.router.add_get("/ready", self.ready)
        app.router.add_get("/withheld", self.withheld)
        app.router.add_get("/drain", self.drain)
        return app

    async def _run(self, _: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as session:
            self.replica.engines = Engines(session, self.settings.ollama_port, self.settings.engine_silence_s)
            loops = [
                asyncio.create_task(self.replica.run(Ollama(self.settings.ollama_url, session))),
                asyncio.create_task(self.replica.engines.watch()),
            ]
            for loop in loops:
                loop.add_done_callback(_end_with)
            yield
            for task in (*loops, self._drain, self._resume):
                if task is not None:
                    task.cancel()

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def alive(self, _: web.Request) -> web.Response:
        """Of Ollama, not of this agent: the kubelet starts its container again."""
        problem = self.replica.hangs()
        return web.json_response({"status": problem or "ok"}, status=503 if problem else 200)

    async def ready(self, _: web.Request) -> web.Response:
        reason = self.replica.unready_reason()
        return web.json_response({"status": reason or "ready"}, status=503 if reason else 200)

    async def withheld(self, _: web.Request) -> web.Response:
        return web.json_response(self.replica.withheld())

    async def context(self, _: web.Request) -> web.Response:
        return web.json_response(context(self.replica))

    async def drain(self, _: web.Request) -> web.Response:
        """Answers when the server may be stopped. A second call waits for the same drain; a caller that leaves ends nothing."""
        if self._drain is None or self._drain.done():
            if self._resume is not None:
                self._resume.cancel()
            self._drain = asyncio.create_task(self.replica.drain())
        result = await asyncio.shield(self._drain)
        if self._resume is None or self._resume.done():
            self._resume = asyncio.create_task(self.replica.resume())
        return web.json_response(result)


def _end_with(loop: asyncio.Task[None]) -> None:
    """A loop that ended by an error of ours must end the process: its last state would be served for ever."""
    if not loop.cancelled() and (error := loop.exception()) is not None:
        log.critical("error: %r", error)
        os.kill(os.getpid(), signal.SIGABRT)


async def serve(settings: AgentSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    agent = Agent(settings)
    runners = []
    for app, port in ((agent.public(), settings.port), (agent.control(), settings.control_port)):
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=2, keepalive_timeout=settings.head_s, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, settings.host, port).start()
        runners.append(runner)
    log.info("metrics on port %d, control on port %d", settings.port, settings.control_port)
    await stop.wait()
    for runner in runners:
        await runner.cleanup()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # What is no HTTP is said to who sent it, and needs no traceback here.
    logging.getLogger("aiohttp.server").addFilter(lambda record: not isinstance((record.exc_info or (0, 0))[1], HttpProcessingError))
    try:
        match sys.argv[1:]:
            case []:
                settings = AgentSettings.read()
                logging.getLogger().setLevel(settings.log_level.upper())
                asyncio.run(serve(settings))
                return 0
            case ["probe"]:
                return asyncio.run(probe(ProbeSettings.read()))
            case other:
                raise SettingsError(f"arguments: got {' '.join(other)!r}, want nothing, or probe; correct them")
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
