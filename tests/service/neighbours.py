"""A fleet of made-up servers on loopback that do what a test tells them, and a name whose look-up the test decides."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.service import endings
from tests.service.conftest import KEY, start_api_server
from tests.service.names import FLEET, Name
from tests.service.processes import Service, free_port

HEADERS = {"Authorization": f"Bearer {KEY}"}
DOCUMENT = json.dumps({"choices": [{"message": {"content": "Hello."}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
EVENTS = b'data: {"choices": [{"delta": {"content": "Hello."}}]}\n\ndata: [DONE]\n\n'


@dataclass
class Request:
    """What a server got, and how it answers."""

    path: str
    headers: dict[str, str]
    """By their names in small letters."""
    body: Any
    writer: asyncio.StreamWriter

    async def say(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()

    async def head(self, status: str = "200 OK", kind: str = "application/json", *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers, "Connection: close", "", ""]
        await self.say("\r\n".join(lines).encode())

    async def answer(self, text: bytes = b"", status: str = "200 OK") -> None:
        """Whole, as a document or as a stream: what was asked for."""
        streams = isinstance(self.body, dict) and self.body.get("stream") is True
        text = text or (EVENTS if streams else DOCUMENT)
        await self.head(status, "text/event-stream" if streams else "application/json", f"Content-Length: {len(text)}")
        await self.say(text)


Behaviour = Callable[[Request], Awaitable[None]]


async def answers(request: Request) -> None:
    await request.answer()


async def breaks_off(_: Request) -> None:
    """Closes the connection without a byte, as a server that dies of the request does."""


@dataclass
class Server:
    """At one address of the fleet."""

    behaviour: Behaviour
    seen: list[Request] = field(default_factory=list)
    """Requests that it read to their end."""
    at_once: int = 0
    most_at_once: int = 0
    _listener: asyncio.Server | None = None

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
            body = await reader.readexactly(int(headers["content-length"])) if "content-length" in headers else b"null"
            request = Request(head.split()[1], headers, json.loads(body), writer)
            self.seen.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                await self.behaviour(request)
            finally:
                self.at_once -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a look whether the port is open, a client that left
        except asyncio.CancelledError:
            writer.transport.abort()  # the end of the test
        finally:
            writer.close()


class Fleet:
    """Servers at 127.0.0.2, 127.0.0.3, … of one port."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.port = free_port()
        self.servers: dict[str, Server] = {}
        self.gateways = 0
        self._name = Name(work)
        self.look_up = self._name.is_now
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def _run(self, work: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(30)

    def add(self, *behaviours: Behaviour) -> list[Server]:
        """Start servers, and have the name look up to all of them."""
        for behaviour in behaviours:
            host, server = f"127.0.0.{len(self.servers) + 2}", Server(behaviour)
            server._listener = self._run(asyncio.start_server(server.handle, host, self.port))
            self.servers[host] = server
        self.look_up(*self.servers)
        return list(self.servers.values())

    def stop(self, server: Server) -> None:
        """It takes no more connections."""
        assert server._listener is not None
        self._run(endings.shut(server._listener))

    @contextmanager
    def gateway(
        self,
        ready: str = "/ready",
        route: dict[str, object] | None = None,
        others: dict[str, dict[str, object]] | None = None,
        group: Path | str = "",
        **env: str,
    ) -> Iterator[Service]:
        """One whose model `a` is served by the fleet; `others`: routes of more models; `group`: the control group that it is in."""
        routes = {"a": {"url": f"http://{FLEET}:{self.port}", **(route or {})}, **(others or {})}
        self.gateways += 1
        work = self.work / f"gateway-{self.gateways}" if self.gateways > 1 else self.work
        work.mkdir(exist_ok=True)
        with ExitStack() as stack:
            yield start_api_server(stack, work, routes, ready, self._name.environment, 0, group, **env)

    @contextmanager
    def running(self) -> Iterator["Fleet"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._run(endings.end(*(server._listener for server in self.servers.values() if server._listener is not None)))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def ask(service: Service, path: str = "/v1/chat/completions", /, **fields: object) -> httpx.Response:
    body = {"model": "a", "messages": [{"role": "user", "content": "Say it."}], **fields}
    return httpx.post(service.url + path, json=body, headers=HEADERS, timeout=60, verify=service.verify)


class Asking:
    """Requests on their way, each in a thread."""

    def __init__(self, service: Service, path: str = "/v1/chat/completions") -> None:
        self._service, self._path = service, path
        self._threads: list[threading.Thread] = []
        self.answers: dict[str, httpx.Response] = {}

    def one(self, word: str, **fields: object) -> None:
        """Ask with a message of this word, by which the answer is found."""

        def run() -> None:
            self.answers[word] = ask(self._service, self._path, messages=[{"role": "user", "content": word}], **fields)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def all(self) -> dict[str, httpx.Response]:
        for thread in self._threads:
            thread.join(90)
        return self.answers


def word(request: Request) -> str:
    """The message of a request."""
    return request.body["messages"][-1]["content"]
