"""`python -m api_server.activator`: scale the Ollama fleet, and model servers, by what their conversations and requests need (scaling.py).

Each API server says at /demand of its metrics port what it needs of the fleet (demand.py), at /demand/NAME what it needs of a model server,
and hears there which server is to go. A server goes only when every API server answers. Requests that come in between are held by the API
server, and a server that goes ends its requests first, so a wrong moment costs time and no request.
"""

import asyncio
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, model_validator
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


class Scale(BaseModel):
    """How many servers one StatefulSet may have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    most: int = Field(ge=1)
    least: int = Field(default=0, ge=0)
    idle_s: float = Field(gt=0)
    """A server goes when it was not needed, and had no request, for so long."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least of at most {self.most}")
        return self


class Settings(Environment):
    """Variables `ACTIVATOR_…`."""

    model_config = SettingsConfigDict(env_prefix="ACTIVATOR_")

    gateways: str = Field(pattern=rf"^{SERVER}$")
    """HOST:PORT; the host resolves to all API servers."""
    stateful_sets_url: str = Field(pattern=r"^https?://\S+/statefulsets$")
    """The StatefulSets of the namespace, on the cluster's API server."""
    token_file: Path = Path("/var/run/secrets/activator/token")
    ca_file: Path = Path("/var/run/secrets/activator/ca.crt")
    scales: Json[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], Scale]] = Field(min_length=1)
    """By the host of a headless Service: its StatefulSet, of the same name, names the servers NAME-0, NAME-1, …"""
    fleet: str = "ollama"
    """Which of them is the Ollama fleet, if any is: API servers mean it by /demand, also those of before there were others."""
    host: str = ""
    """Where it listens; empty is every address, of each family that the kernel has."""
    port: int = Field(default=9467, ge=0, le=65535)
    head_s: float = Field(default=75, gt=0)
    """For the whole head of a connection's next request; who asks each minute keeps one connection."""


class Servers:
    """The servers of one StatefulSet."""

    def __init__(self, settings: Settings, name: str, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._name = name
        self._session = session
        scale = settings.scales[name]
        self._scaling = Scaling(scale.least, scale.most, scale.idle_s)
        self._last: str | None = None
        """Address of the last server, empty when it has none; None: not known."""
        self._last_round = time.monotonic()

    @property
    def is_well(self) -> bool:
        return time.monotonic() - self._last_round < _STALE_S

    async def run(self) -> None:
        """Never ends."""
        while True:
            try:
                await self.round()
                self._last_round = time.monotonic()
            except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
                log.warning("%s: no round: %s: %s", self._name, type(error).__name__, error)
            await asyncio.sleep(_POLL_S)

    async def round(self) -> None:
        """Look once, and scale if that is wanted."""
        current, there = await self._scale()
        self._last = await self._address(current - 1)
        demands = await self._demands()
        left = self._scaling.leaving
        replicas = self._scaling.wanted(demands, current, there, self._last, time.monotonic())
        if self._scaling.leaving and not left:
            log.info("%s: replica %d gets no new conversation: fewer are needed", self._name, current - 1)
        if replicas != current:
            log.info("%s: replicas %d to %d: %s", self._name, current, replicas, [demand and demand.model_dump() for demand in demands])
            await self._scale(replicas)

    async def _address(self, ordinal: int) -> str | None:
        found = await addresses(f"{self._name}-{ordinal}.{full_name(self._name)}", 0)
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
        path = "/demand" if self._name == self._settings.fleet else f"/demand/{self._name}"
        try:
            async with self._session.get(f"{base_url(host, port)}{path}", params=leaving, timeout=_TIMEOUT) as response:
                return Demand.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError):
            return None

    async def _scale(self, replicas: int | None = None) -> tuple[int, int]:
        """Read the scale, or set it: the number that is wanted, and that of pods that are there. Raises aiohttp.ClientError. The token is
        read each time: Kubernetes renews it."""
        settings = self._settings
        url = f"{settings.stateful_sets_url}/{self._name}/scale"
        context = ssl.create_default_context(cafile=settings.ca_file) if url.startswith("https:") else False
        headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
        method, body = ("GET", None) if replicas is None else ("PATCH", {"spec": {"replicas": replicas}})
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        async with self._session.request(method, url, json=body, headers=headers, ssl=context, timeout=_TIMEOUT) as response:
            response.raise_for_status()
            found = await response.json()
            wanted = int(found["spec"].get("replicas", 0))
            return wanted, int(found.get("status", {}).get("replicas", wanted))


def app(every: Sequence[Servers]) -> web.Application:
    async def health(_: web.Request) -> web.Response:
        well = all(servers.is_well for servers in every)
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
        every = [Servers(settings, name, session) for name in settings.scales]
        runner = web.AppRunner(app(every), access_log=None, keepalive_timeout=settings.head_s, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, settings.host, settings.port).start()
        rounds = [asyncio.create_task(servers.run()) for servers in every]
        log.info("watching %s for %s", settings.gateways, ", ".join(settings.scales))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([*rounds, stopped], return_when=asyncio.FIRST_COMPLETED)
        failed = [type(task.exception()).__name__ for task in rounds if task.done()]
        if failed:
            why = ", ".join(failed)
            log.error("rounds: got their end (%s), want them to run for ever; ending, so that the process is started again", why)
        for task in (*rounds, stopped):
            task.cancel()
        await runner.cleanup()
    return int(bool(failed))


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # What is no HTTP is said to who sent it, and needs no traceback here.
    logging.getLogger("aiohttp.server").addFilter(lambda record: not isinstance((record.exc_info or (0, 0))[1], HttpProcessingError))
    try:
        settings = Settings.read()
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logging.getLogger().setLevel(settings.log_level.upper())
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
