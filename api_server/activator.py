"""`python -m api_server.activator`: scale the Ollama fleet from zero when requests wait, and to zero when none come.

Each API server says at /demand of its metrics port how many requests wait, how many are in work, and for how long there were none.
One that waits brings the fleet up; only when every API server answers and all are idle, it goes to zero. Requests that
come in between are held by the API server, so a wrong moment costs time and no request.
"""

import asyncio
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_settings import SettingsConfigDict

from api_server.address import base_url
from api_server.settings import SERVER, Environment, SettingsError

log = logging.getLogger("activator")
_POLL_S = 1.0
_TIMEOUT = aiohttp.ClientTimeout(total=5)
_STALE_S = 60.0
"""Without a successful round for so long, the process is not well."""


class Settings(Environment):
    """Variables `ACTIVATOR_…`."""

    model_config = SettingsConfigDict(env_prefix="ACTIVATOR_")

    gateways: str = Field(pattern=rf"^{SERVER}$")
    """HOST:PORT; the host resolves to all API servers."""
    scale_url: str = Field(pattern=r"^https?://\S+/scale$")
    """The scale of the fleet's StatefulSet, on the cluster's API server."""
    token_file: Path = Path("/var/run/secrets/activator/token")
    ca_file: Path = Path("/var/run/secrets/activator/ca.crt")
    replicas: int = Field(ge=1)
    """Servers of a fleet that is up."""
    idle_s: float = Field(gt=0)
    """Without requests for so long, the fleet goes to zero."""
    host: str = ""
    """Where it listens; empty is every address, of each family that the kernel has."""
    port: int = Field(default=9467, ge=0, le=65535)


class Demand(BaseModel):
    """What one API server says."""

    waiting: int
    in_flight: int
    idle_s: float


@dataclass(frozen=True)
class Unreachable:
    """An API server that did not answer: nothing is known of its requests."""

    host: str


def wanted(demands: Sequence[Demand | Unreachable], current: int, settings: Settings) -> int:
    """Replicas that the fleet should have now."""
    known = [demand for demand in demands if isinstance(demand, Demand)]
    if current < settings.replicas and any(demand.waiting for demand in known):
        return settings.replicas
    if current == 0:
        return 0
    idle = bool(demands) and len(known) == len(demands) and all(demand.idle_s >= settings.idle_s for demand in known)
    return 0 if idle and not any(demand.waiting or demand.in_flight for demand in known) else current


class Activator:
    """State of one process."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        # A process that has just started knows of no idle time before it.
        self._up_since = self._last_round = time.monotonic()
        self._seen = 0

    async def run(self) -> None:
        while True:
            try:
                await self.round()
                self._last_round = time.monotonic()
            except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
                log.warning("no round: %s: %s", type(error).__name__, error)
            await asyncio.sleep(_POLL_S)

    async def round(self) -> None:
        """Look once, and scale if that is wanted."""
        demands = await self._demands()
        current = await self._scale()
        if current > self._seen:
            # Whoever brings the fleet up, a person or a deployment, gets it for the whole of the idle time.
            self._up_since = time.monotonic()
        self._seen = current
        replicas = wanted(demands, current, self._settings)
        if replicas == current or (replicas == 0 and time.monotonic() - self._up_since < self._settings.idle_s):
            return
        log.info("replicas %d to %d: %s", current, replicas, demands)
        await self._scale(replicas)

    async def _demands(self) -> list[Demand | Unreachable]:
        gateways = urlsplit(f"//{self._settings.gateways}")
        host, port = gateways.hostname or "", gateways.port or 0
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror:
            return []
        return list(await asyncio.gather(*(self._demand(str(info[4][0]), port) for info in found)))

    async def _demand(self, host: str, port: int) -> Demand | Unreachable:
        try:
            async with self._session.get(f"{base_url(host, port)}/demand", timeout=_TIMEOUT) as response:
                return TypeAdapter(Demand).validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError):
            return Unreachable(host)

    async def _scale(self, replicas: int | None = None) -> int:
        """Read the scale, or set it. Raises aiohttp.ClientError. The token is read each time: Kubernetes renews it."""
        settings = self._settings
        context = ssl.create_default_context(cafile=settings.ca_file) if settings.scale_url.startswith("https:") else False
        headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
        method, body = ("GET", None) if replicas is None else ("PATCH", {"spec": {"replicas": replicas}})
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        async with self._session.request(method, settings.scale_url, json=body, headers=headers, ssl=context, timeout=_TIMEOUT) as response:
            response.raise_for_status()
            return int((await response.json())["spec"].get("replicas", 0))

    def app(self) -> web.Application:
        async def health(_: web.Request) -> web.Response:
            well = time.monotonic() - self._last_round < _STALE_S
            return web.json_response({"status": "ok" if well else "no round succeeds"}, status=200 if well else 503)

        app = web.Application()
        app.router.add_get("/health", health)
        return app


async def serve(settings: Settings) -> int:
    """Exit status: 0 after a signal, 1 when the rounds have ended, which is a fault of ours."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A new connection each time: when the network policy no longer lets us ask, which is the first step of our removal, we know of no
    # idle gateway, and leave the fleet as it is.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        activator = Activator(settings, session)
        runner = web.AppRunner(activator.app(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, settings.host, settings.port).start()
        rounds = asyncio.create_task(activator.run())
        log.info("watching %s", settings.gateways)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([rounds, stopped], return_when=asyncio.FIRST_COMPLETED)
        failed = rounds.done()
        if failed:
            why = type(rounds.exception()).__name__
            log.error("rounds: got their end (%s), want them to run for ever; ending, so that the process is started again", why)
        rounds.cancel()
        stopped.cancel()
        await runner.cleanup()
    return int(failed)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = Settings.read()
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
