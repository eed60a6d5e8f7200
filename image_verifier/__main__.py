"""`python -m image_verifier`: serve the webhook over TLS until SIGTERM."""

import asyncio
import logging
import signal
import ssl
import sys

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from image_verifier.access import AccessError
from image_verifier.app import Verifier
from image_verifier.settings import Settings, SettingsError
from image_verifier.signatures import KeysError, read_keys

log = logging.getLogger("image_verifier")


async def serve(settings: Settings, verifier: Verifier) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.certificate_file, settings.key_file)
    runner = web.AppRunner(
        verifier.app(), access_log=None, shutdown_timeout=settings.timeout_s, keepalive_timeout=settings.head_s, auto_decompress=False
    )
    await runner.setup()
    await web.TCPSite(runner, settings.host, settings.port, ssl_context=context).start()
    log.info("verifying signatures with %d keys on port %d", len(verifier.keys), settings.port)
    await stop.wait()
    await runner.cleanup()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # What is no HTTP is said to who sent it, and needs no traceback here.
    logging.getLogger("aiohttp.server").addFilter(lambda record: not isinstance((record.exc_info or (0, 0))[1], HttpProcessingError))
    try:
        settings = Settings.read()
        logging.getLogger().setLevel(settings.log_level.upper())
        verifier = Verifier(settings, read_keys(settings.public_keys_file))
        asyncio.run(serve(settings, verifier))
    except (SettingsError, KeysError, AccessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: VERIFIER_CERTIFICATE_FILE: got {error}, want a certificate and its key in PEM; mount the Secret", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
