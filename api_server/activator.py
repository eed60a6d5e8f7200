"""`python -m api_server.activator`: scale the Ollama fleet by what its conversations and requests need (scaling.py).

Each API server says at /demand of its metrics port what it needs (demand.py), and hears there which server is to go. A server goes only
when every API server answers. Requests that come in between are held by the API server, and a server that goes ends its requests first,
so a wrong moment costs time and no request.
"""

import asyncio
import logging
import signal
import socket
import ssl
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from api_server.address import base_url
from api_server.demand import Demand
from api_server.lookup import addresses, full_name
from api_server.scaling import Scaling
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
    """Servers at most."""
    min_replicas: int = Field(default=0, ge=0)
    """Servers at least."""
    idle_s: float = Field(gt=0)
    """A server goes when it was not needed, and had no request, for so long."""
    servers: str = Field(default="ollama", pattern=r"^[A-Za-z0-9._-]+$")
    """Host of the fleet's headless Service: its StatefulSet, of the same name, names the servers NAME-0, NAME-1, …"""
    host: str = ""
    """Where it listens; empty is every address, of each family that the kernel has."""
    port: int = Field(default=9467, ge=0, le=65535)


class Activator:
    """State of one process."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        self._scaling = Scaling(settings.min_replicas, settings.replicas, settings.idle_s)
        self._last: str | None = None
        """Address of the last server, empty when it has none; None: not known."""
        self._last_round = time.monotonic()

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
        current, there = await self._scale()
        self._last = await self._address(current - 1)
        demands = await self._demands()
        left = self._scaling.leaving
        replicas = self._scaling.wanted(demands, current, there, self._last, time.monotonic())
        if self._scaling.leaving and not left:
            log.info("replica %d gets no new conversation: fewer are needed", current - 1)
        if replicas != current:
            log.info("replicas %d to %d: %s", current, replicas, [demand and demand.model_dump() for demand in demands])
            await self._scale(replicas)

    async def _address(self, ordinal: int) -> str | None:
        host = full_name(self._settings.servers)
        found = await addresses(f"{self._settings.servers}-{ordinal}.{host}", 0)
        return None if found is None else next(iter(found), "")

    async def _demands(self) -> list[Demand | None]:
        """Of each API server; None of one that does not answer."""
        gateways = urlsplit(f"//{self._settings.gateways}")
        host, port = gateways.hostname or "", gateways.port or 0
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror:
            return []
        return list(await asyncio.gather(*(self._demand(str(info[4][0]), port) for info in found)))

    async def _demand(self, host: str, port: int) -> Demand | None:
        leaving = {"leaving": self._last} if self._scaling.leaving and self._last else {}
        try:
            async with self._session.get(f"{base_url(host, port)}/demand", params=leaving, timeout=_TIMEOUT) as response:
                return Demand.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError):
            return None

    async def _scale(self, replicas: int | None = None) -> tuple[int, int]:
        """Read the scale, or set it: the number that is wanted, and that of pods that are there. Raises aiohttp.ClientError. The token is
        read each time: Kubernetes renews it."""
        settings = self._settings
        context = ssl.create_default_context(cafile=settings.ca_file) if settings.scale_url.startswith("https:") else False
        headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
        method, body = ("GET", None) if replicas is None else ("PATCH", {"spec": {"replicas": replicas}})
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        async with self._session.request(method, settings.scale_url, json=body, headers=headers, ssl=context, timeout=_TIMEOUT) as response:
            response.raise_for_status()
            found = await response.json()
            wanted = int(found["spec"].get("replicas", 0))
            return wanted, int(found.get("status", {}).get("replicas", wanted))

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
    logging.getLogger().setLevel(settings.log_level.upper())
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
