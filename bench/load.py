"""A client for measurements: requests to one address, each on a connection of its own that stays open. Loopback only."""

import asyncio
import contextlib
import json
import math
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.upstream import MODEL

_EVENT = b"data: "
_CONTENT = re.compile(rb'"content": ?"[^"]')
"""Text; the part of a stream that says who speaks has an empty one, or none."""
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
PATIENCE_S = 60.0
"""For the first content of an answer, and then for its end."""
OPENING = 64
"""Streams that are opened at once."""


@dataclass(frozen=True)
class Server:
    """What is asked."""

    url: str
    key: str = "none"
    patience_s: float = PATIENCE_S

    def request(self, text: str, *, stream: bool, model: str = MODEL, temperature: float = 0.2, max_tokens: int = 256) -> bytes:
        """A short request of an agent's, whole."""
        messages = [{"role": "system", "content": "You are a helpful assistant. Answer briefly."}, {"role": "user", "content": text}]
        body: dict[str, object] = {"model": model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
        body |= {"stream": True} if stream else {}
        data = json.dumps(body).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: {urlsplit(self.url).netloc}",
            f"Authorization: Bearer {self.key}",
            "Content-Type: application/json",
            "Accept: */*",
            "User-Agent: bench",
            f"Content-Length: {len(data)}",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + data


def document(server: Server) -> bytes:
    """A request without a stream."""
    return server.request("Say it.", stream=False)


def stream(server: Server, chunks: int, pause_ms: int, *, stays: bool = False) -> bytes:
    """A request for a stream of so many chunks, which may then stay open and be silent."""
    return server.request(f"Say chunks={chunks} pause_ms={pause_ms}{' stays' if stays else ''}", stream=True)


class Connection(asyncio.Protocol):
    """One to a server. Its answers are read to their end, and their parts counted."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._received = bytearray()
        self._started: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._chunked = False
        self._whole: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a connection of asyncio's makes no other)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in (self._started, self._ended):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ConnectionResetError("the connection was closed"))
                # It may have nobody who waits for it.
                waiting.exception()

    @property
    def heard(self) -> bool:
        """Whether a byte of the answer has come."""
        return bool(self._received)

    def send(self, request: bytes) -> None:
        """Ask. The answer before must have ended."""
        loop = asyncio.get_running_loop()
        self._received.clear()
        self._started, self._ended, self._whole = loop.create_future(), loop.create_future(), None
        if self.transport.is_closing():
            self.connection_lost(None)
        self.transport.write(request)

    async def first(self) -> None:
        """Wait for the first content of the answer. Raises OSError, also for a refusal, and TimeoutError."""
        assert self._started is not None  # noqa: S101 (after send)
        async with asyncio.timeout(self._patience_s):
            await self._started

    async def rest(self) -> int:
        """Wait for the answer's end. The parts with content that it had. Raises OSError, also for a refusal, and TimeoutError."""
        assert self._ended is not None  # noqa: S101 (after send)
        async with asyncio.timeout(self._patience_s):
            await self._ended
        return sum(1 for _ in _CONTENT.finditer(self._received))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._started is None or self._ended is None:
            return
        if self._whole is None:
            end = self._received.find(_HEAD_END)
            if end < 0:
                return
            if not self._received.startswith(b"HTTP/1.1 200 "):
                self.connection_lost(None)
                self.transport.close()
                return
            found = _LENGTH.search(self._received, 0, end)
            self._whole = end + len(_HEAD_END) + int(found[1]) if found else 0
        if not self._started.done() and _CONTENT.search(self._received):
            self._started.set_result(None)
        whole = len(self._received) >= self._whole if self._whole else self._received.endswith(_LAST_CHUNK)
        if whole and not self._ended.done():
            self._ended.set_result(None)


async def connected(server: Server) -> Connection:
    """Raises OSError."""
    host, _, port = urlsplit(server.url).netloc.partition(":")
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(server.patience_s), host, int(port))
    return connection


@dataclass
class Tally:
    """Of many requests."""

    answered: int = 0
    failed: int = 0
    parts: int = 0
    """With content."""


async def repeated(
    server: Server, request: bytes, count: int, at_once: int, first_s: list[float] | None = None, limit_s: float = math.inf
) -> Tally:
    """So many requests, so many of them at once; none begins after `limit_s`. `first_s` gets the seconds to the first content of each."""
    left, tally, over = iter(range(count)), Tally(), time.monotonic() + limit_s

    async def answer(connection: Connection) -> int:
        began = time.perf_counter()
        connection.send(request)
        if first_s is not None:
            await connection.first()
            first_s.append(time.perf_counter() - began)
        return await connection.rest()

    async def client() -> None:
        connection: Connection | None = None
        try:
            for _ in left:
                if time.monotonic() > over:
                    return
                used = connection is not None
                try:
                    connection = connection or await connected(server)
                    try:
                        parts = await answer(connection)
                    except ConnectionResetError:
                        if not used or connection.heard:
                            raise
                        # A server may close a connection after an answer, as the next request comes: clients then take another one.
                        connection = await connected(server)
                        parts = await answer(connection)
                    tally.parts += parts
                    tally.answered += 1
                except (OSError, TimeoutError):
                    tally.failed += 1
                    if connection is not None:
                        connection.transport.abort()
                    connection = None
        finally:
            if connection is not None:
                connection.transport.abort()

    await asyncio.gather(*(client() for _ in range(at_once)))
    return tally


CHUNKS, PAUSE_MS = 64, 100
"""Of the streams beside which the first chunk is waited for: 10 tokens a second each, as an agent of a busy fleet gets them."""


async def first_chunks(server: Server, streams: int, count: int, limit_s: float) -> tuple[list[float], Tally]:
    """Seconds to the first chunk of so many short streams, one after the other, beside other streams that begin and end all the time, so
    that there are `streams` at once. Fewer when the limit has passed. The tally is of the others. Raises OSError."""
    tally = Tally()

    async def client(after_s: float) -> None:
        await asyncio.sleep(after_s)
        while True:
            got = await repeated(server, stream(server, CHUNKS, PAUSE_MS), 4, 1)
            tally.answered, tally.failed, tally.parts = tally.answered + got.answered, tally.failed + got.failed, tally.parts + got.parts

    whole_s = CHUNKS * PAUSE_MS / 1000
    others = [asyncio.create_task(client(whole_s * number / streams)) for number in range(1, streams)]
    seconds: list[float] = []
    try:
        await asyncio.sleep(whole_s if others else 0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                connection = await connected(server)
                while len(seconds) < count:
                    started = time.perf_counter()
                    connection.send(stream(server, 1, 0))
                    await connection.first()
                    seconds.append(time.perf_counter() - started)
                    await connection.rest()
                connection.transport.close()
    finally:
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    return seconds, tally


@contextlib.asynccontextmanager
async def idle(servers: Sequence[Server], count: int, limit_s: float) -> AsyncIterator[Tally]:
    """So many streams that said one thing, and stay open without a word until the block ends; fewer when the limit has passed. `servers`:
    one with different keys, which take turns."""
    left, tally = iter(range(count)), Tally()
    connections: list[Connection] = []

    async def client() -> None:
        for number in left:
            server = servers[number % len(servers)]
            try:
                connection = await connected(server)
                connections.append(connection)
                connection.send(stream(server, 1, 0, stays=True))
                await connection.first()
                tally.answered += 1
            except (OSError, TimeoutError):
                tally.failed += 1

    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(client() for _ in range(OPENING)))
        yield tally
    finally:
        for connection in connections:
            connection.transport.abort()
        await asyncio.sleep(0)
