"""A forward proxy on loopback. Some names are known to it alone, as names outside are on a company's network."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.service import endings


@dataclass
class ForwardProxy:
    """Change the fields between requests."""

    server: str = ""
    """HOST:PORT."""
    hosts: dict[str, str] = field(default_factory=dict)
    """HOST:PORT that is asked for, to the one that it is."""
    wants: str | None = None
    """The Proxy-Authorization without which it answers 407."""
    refusal: int = 0
    """Answers every request with it."""
    silent: bool = False
    """Takes connections, and says nothing."""
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, target and Proxy-Authorization of each request."""
    heads: list[str] = field(default_factory=list)
    """All that it could read of them, line by line."""
    ports: set[int] = field(default_factory=set)
    """Ports of its own connections to servers."""

    @property
    def option(self) -> str:
        return f"--proxy=http://{self.server}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError), closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            method, target, _ = head[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            self.heads += head
            self.seen.append((method, target, headers.get("proxy-authorization")))
            if self.silent:
                await reader.read()
            elif self.wants is not None and headers.get("proxy-authorization") != self.wants:
                writer.write(b'HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
            elif self.refusal or self._place(method, target) not in self.hosts:
                writer.write(f"HTTP/1.1 {self.refusal or 502} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            else:
                await self._lead(method, target, head[1:], reader, writer)

    @staticmethod
    def _place(method: str, target: str) -> str:
        if method == "CONNECT":
            return target
        parts = urlsplit(target)
        return f"{parts.hostname}:{parts.port or 80}"

    async def _lead(self, method: str, target: str, headers: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.hosts[self._place(method, target)].rpartition(":")
        there, out = await asyncio.open_connection(host, int(port))
        self.ports.add(out.get_extra_info("sockname")[1])
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            kept = [line for line in headers if not line.lower().startswith("proxy-")]
            out.write("\r\n".join([f"{method} {urlsplit(target).path} HTTP/1.1", *kept, "", ""]).encode())
        await asyncio.gather(_copy(reader, out), _copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError), closing(writer):
        while block := await reader.read(1 << 16):
            writer.write(block)
            await writer.drain()


@contextmanager
def serving() -> Iterator[ForwardProxy]:
    proxy, loop = ForwardProxy(), asyncio.new_event_loop()
    listener = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0))
    proxy.server = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(endings.end(listener), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
