"""The client's side of one request: its answer, from nothing sent to the last byte."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping

import aiohttp
from aiohttp import web

from api_server import errors
from api_server.usage import Reader

HEARTBEAT_S = 10.0
"""Between signs of life of a request that waits: under the 60 s of most proxies' patience."""
_RETURNED_HEADERS = ("content-type", "retry-after", "x-cache")


class Answer:
    """Written once an upstream has something, or earlier when a stream has to show that it lives."""

    def __init__(self, request: web.Request, request_id: str, stream: str) -> None:
        self._request = request
        self.request_id = request_id
        self._headers = {"x-request-id": request_id}
        self.stream = stream
        self.target: web.StreamResponse | None = None
        self._next_beat = time.monotonic() + HEARTBEAT_S

    async def start(self, status: int, headers: Mapping[str, str], length: int | None = None) -> web.StreamResponse:
        if self.target is not None:
            return self.target
        self.target = web.StreamResponse(status=status)
        self.target.headers.update({name: headers[name] for name in _RETURNED_HEADERS if name in headers} | self._headers)
        if length is not None:
            self.target.content_length = length
        elif self.stream:
            # Proxies between us and the client would collect the events otherwise.
            self.target.headers.update({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        await self.target.prepare(self._request)
        return self.target

    async def wait(self) -> None:
        """Sign of life of a request that still waits: a comment, which clients of server-sent events skip. Others get none."""
        if self.stream == "sse" and time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + HEARTBEAT_S
            target = await self.start(200, {"content-type": "text/event-stream"})
            await target.write(b": waiting for a server\n\n")

    async def fail(self, failure: errors.ApiError) -> web.StreamResponse:
        """Say it in the way that the answer's state still allows. Raises `failure` itself while nothing was sent."""
        if self.target is None:
            raise failure
        if self.stream == "sse":
            # No [DONE] follows: that is how a client tells a cut stream from a finished one.
            await self.target.write(f"data: {json.dumps(failure.body)}\n\n".encode())
            await self.target.write_eof()
        elif self.stream == "ndjson":
            await self.target.write(json.dumps({"error": str(failure)}).encode() + b"\n")
            await self.target.write_eof()
        elif self._request.transport is not None:
            # A truncated body must not look whole.
            self._request.transport.abort()
        return self.target

    async def relay(self, source: aiohttp.ClientResponse, reader: Reader) -> web.StreamResponse:
        """Pass a server's body on as it comes. Raises ApiError on a refusal that comes after the answer's start,
        and aiohttp.ClientError and TimeoutError of the server's side alone."""
        if self.target is not None and source.status != 200:
            # The status went out with the first sign of life.
            raise errors.upstream_said(source.status, (await source.read()).decode(errors="replace"))
        length = source.content_length if not self.stream else None
        while True:
            chunk = await source.content.readany()
            if not chunk:
                break
            if kept := reader.feed(chunk):
                await self._write(source, kept, length)
        if rest := reader.rest():
            await self._write(source, rest, length)
        with _clients_side():
            target = await self.start(source.status, source.headers, length)
            await target.write_eof()
        return target

    async def _write(self, source: aiohttp.ClientResponse, chunk: bytes, length: int | None) -> None:
        with _clients_side():
            target = await self.start(source.status, source.headers, length)
            await target.write(chunk)


@contextlib.contextmanager
def _clients_side() -> Iterator[None]:
    """aiohttp has one family of errors for both sides; what fails here is the client's leaving."""
    try:
        yield
    except aiohttp.ClientError as error:
        raise ConnectionResetError(str(error)) from None
