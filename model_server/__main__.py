"""`python -m model_server`: answer at once, load meanwhile, serve until SIGTERM, then drain."""

import asyncio
import contextlib
import functools
import logging
import resource
import signal
import sys

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from model_server import gpus
from model_server.app import ModelServer
from model_server.cache import AnswerCache
from model_server.connections import Connection, Connections
from model_server.engine import Engine, EngineError
from model_server.engines import engine_of
from model_server.metrics import Tier
from model_server.settings import Settings, SettingsError
from model_server.store import StoreError
from model_server.words import leave

log = logging.getLogger("model_server")


async def serve(settings: Settings) -> int:
    """Exit status: 0 after a drain, 1 when the engine could not start or ended by itself."""
    # A container's processes often start with 1024, and may have many more. Refused where the kernel's own limit is below the hard one.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engine, digest = engine_of(settings)
    cache = AnswerCache(settings.cache_url, settings.cache_password_file) if settings.cache_url else None
    server = ModelServer(settings, engine, digest, cache)
    if settings.keeper_file is not None:
        server.metrics.registry.register(Tier(settings.keeper_file))
    server.metrics.restored.set_function(lambda: engine.restored_tokens)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A client that goes away must free its slot: the handler is cancelled, and with it the engine's request.
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=settings.drain_s)
    await runner.setup()
    assert runner.server is not None  # noqa: S101 (it was set up)
    loop = asyncio.get_running_loop()
    connections = Connections(settings.max_connections, settings.head_s)
    connection = functools.partial(Connection, connections, runner.server, access_log=None)
    listener = await loop.create_server(connection, settings.host, settings.port, reuse_address=True)
    log.info("port %d open, loading %s", settings.port, settings.model)
    lifetime = asyncio.create_task(_engine_lifetime(engine, settings.engine_silence_s))
    watching = asyncio.create_task(gpus.watch(engine))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([lifetime, stopped], return_when=asyncio.FIRST_COMPLETED)
    failed = lifetime.done()
    if failed and settings.last_words_file is not None:
        leave(settings.last_words_file, engine.words.lines, str(lifetime.exception() or lifetime.result()))
    if not failed:
        log.info("draining: unready for %g s, then up to %g s for requests in flight", settings.drain_delay_s, settings.drain_s)
        server.draining = True
        await asyncio.sleep(settings.drain_delay_s)
    listener.close()
    await runner.cleanup()
    if not failed:
        await engine.leave()
    for task in (lifetime, watching):
        task.cancel()
    await engine.stop()
    if cache is not None:
        await cache.close()
    stopped.cancel()
    log.info("engine ended" if failed else "drained")
    return 1 if failed else 0


async def _engine_lifetime(engine: Engine, limit_s: float) -> str:
    """Ends when the engine does, or when it was silent for so long. Returns why."""
    try:
        await engine.start()
    except EngineError as error:
        log.error("%s", error)
        return str(error)
    ended, silent = asyncio.create_task(engine.wait()), asyncio.create_task(engine.silent(limit_s))
    try:
        await asyncio.wait([ended, silent], return_when=asyncio.FIRST_COMPLETED)
        await engine.words.end()
        why = f"exit status {ended.result()}, want it to run" if ended.done() else "no answer, want one; it hangs"
        engine.kill()
        why = f"engine: got {why}; ending so that it is started again"
        log.error("%s", why)
        return f"{why}; it said: {engine.words.reason}" if engine.words.reason else why
    finally:
        ended.cancel()
        silent.cancel()


def _one_line(record: logging.LogRecord) -> bool:
    """aiohttp writes a traceback for each body that it cannot unpack, also for who has no key. What a client did wrong is said to the
    client; of anything else a line is enough."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        record.msg, record.args, record.exc_info = f"{record.getMessage()}: {type(error).__name__}", (), None
    return not isinstance(error, web.RequestPayloadError | HttpProcessingError)


def main() -> int:
    logging.getLogger("aiohttp.server").addFilter(_one_line)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = Settings.read()
        logging.getLogger().setLevel(settings.log_level.upper())
        return asyncio.run(serve(settings))
    except (SettingsError, StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
