"""`python -m api_server`: serve until SIGTERM, then drain."""

import asyncio
import functools
import gc
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

import aiohttp
import uvloop
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from api_server.aliases import Aliases, AliasesError
from api_server.app import ApiServer
from api_server.connections import Connection
from api_server.connector import Connector
from api_server.handshake import Handshake, save_memory
from api_server.keys import Keys, KeysError
from api_server.pools import Resolver
from api_server.sending import CONNECT_S
from api_server.settings import Settings, SettingsError
from api_server.tls import Certificate, TlsError

log = logging.getLogger("api_server")
_LONGEST_HEADER = 64 * 2**10
"""Bytes; a longer one is no HTTP to us. Up to here a key that is far too long gets the same 401 as every other wrong one."""
_COLLECTED = 50_000
"""Objects that come before garbage is looked for; nearly all go by themselves. Python's own 700 come with every few requests: a tenth of
the time of each, and more for each stream that is open (bench/gateway.py)."""


async def serve(settings: Settings, keys: Keys, aliases: Aliases, certificate: Certificate | None) -> int:
    """Exit status: 0 after a drain, 1 when something that must run for ever has ended."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=settings.request_timeout_s)
    # An idle connection holds up the drain of a server: it cannot be told from a request that is being thought about.
    connector = Connector(limit=0, keepalive_timeout=4, resolver=Resolver())
    options: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}, "auto_decompress": False, "cookie_jar": aiohttp.DummyCookieJar()}
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, **options) as session:
        server = ApiServer(settings, keys, aliases, session, certificate)
        await _serve(server, settings)
    return int(server.failed)


async def _serve(server: ApiServer, settings: Settings) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop.set)
    metrics = web.AppRunner(server.metrics.app(), access_log=None, keepalive_timeout=settings.head_s, auto_decompress=False)
    await metrics.setup()
    await web.TCPSite(metrics, settings.host, settings.metrics_port).start()
    # A client that goes away must free its upstream: the handler is cancelled.
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=settings.drain_s)
    await runner.setup()
    assert runner.server is not None  # noqa: S101 (it was set up)
    connection = functools.partial(Connection, server.connections, runner.server, access_log=None, max_field_size=_LONGEST_HEADER)
    first: Callable[[], asyncio.Protocol] = connection
    if server.certificate is not None:
        save_memory()
        first = functools.partial(Handshake, server.certificate, server.connections, connection)
    listener = await asyncio.get_running_loop().create_server(first, settings.host, settings.port, reuse_address=True)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED)
    log.info("serving %s on port %d%s", ", ".join(settings.routes), settings.port, " with TLS" if server.certificate else "")
    await server.stop.wait()
    log.info("draining: unready for %g s, then up to %g s for requests in flight", settings.drain_delay_s, settings.drain_s)
    server.draining = True
    await asyncio.sleep(settings.drain_delay_s)
    listener.close()
    await runner.cleanup()
    # What the last requests used would be lost to a Prometheus that has not read it yet.
    await server.metrics.readers.have_all()
    await metrics.cleanup()
    log.info("drained")


def _one_line(record: logging.LogRecord) -> bool:
    """aiohttp writes a traceback for each body that it cannot unpack, also for who has no key. What a client did wrong is said to the
    client; of anything else a line is enough."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        record.msg, record.args, record.exc_info = f"{record.getMessage()}: {type(error).__name__}", (), None
    return not isinstance(error, web.RequestPayloadError | HttpProcessingError)


def _logs() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("aiohttp.server").addFilter(_one_line)


def main() -> int:
    _logs()
    try:
        settings = Settings.read()
        logging.getLogger().setLevel(settings.log_level.upper())
        keys = Keys(settings.keys_file)
        aliases = Aliases(settings.aliases_file, settings.routes)
        certificate = Certificate(settings.tls_dir, settings.tls_names) if settings.tls_dir is not None else None
        # A sixth less time for a request, and a fifth for a stream (bench/gateway.py). With TLS it would keep 256 KiB for each connection.
        run = uvloop.run if certificate is None else asyncio.run
        return run(serve(settings, keys, aliases, certificate))
    except (SettingsError, KeysError, AliasesError, TlsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
