"""The client's side of one request: its answer, from nothing sent to the last byte."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import cast

import aiohttp
from aiohttp import web
from aiohttp.http import StreamWriter

from api_server import errors
from api_server.address import Address
from api_server.connector import flow
from api_server.paths import ENDPOINTS
from api_server.patience import Patience
from api_server.reading import body
from api_server.streams import STREAMS, Stream
from api_server.usage import Reader

_RETURNED_HEADERS = ("content-type", "retry-after", "x-cache")
_DOCUMENT = "application/json"
_LONGEST_REFUSAL = 64 * 2**10
"""Bytes of a server's answer that is no success."""


class Answer:
    """Written once an upstream has something, or earlier when a stream has to show that it lives."""

    def __init__(self, request: web.Request, request_id: str, model: str, reader: Reader, silence_s: float) -> None:
        self._request = request
        self.request_id = request_id
        self.model = model
        self.reader = reader
        self._kind = STREAMS.get(reader.stream)
        self._api = ENDPOINTS[request.path].api
        self._silence_s = silence_s
        self.finish: Callable[[bytes], Awaitable[bytes]] | None = None
        """What a server's document becomes before a client gets it; raises ValueError on one that is none."""
        self.sent = 0.0
        """When the server got the request, by the monotonic clock."""
        self.in_parts = True
        """Whether a document that is too long for that may go on as it comes."""
        self._target: web.StreamResponse | None = None
        self._starting = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None
        self._written = time.monotonic()

    @property
    def is_stream(self) -> bool:
        return self._kind is not None

    async def _start(self, headers: Mapping[str, str]) -> web.StreamResponse:
        """Begin an answer that comes in parts."""
        async with self._starting:
            if self._target is not None:
                return self._target
            target = web.StreamResponse(headers=self._headers(headers))
            await target.prepare(self._request)
            self._target = target
            return target

    async def _whole(self, headers: Mapping[str, str], document: bytes) -> web.StreamResponse:
        """Send an answer that is there, head and all at once."""
        self._target = target = web.Response(body=document, headers=self._headers(headers))
        await target.prepare(self._request)
        await target.write_eof()
        return target

    async def own(self, document: bytes) -> web.StreamResponse:
        """Send an answer that is ours, and no server's."""
        with _clients_side():
            return await self._whole({"content-type": _DOCUMENT}, document)

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Of the server's, those that a client gets, and ours."""
        kept = {name: headers[name] for name in _RETURNED_HEADERS if name in headers} | {"x-request-id": self.request_id}
        if self._api == "anthropic":
            kept["request-id"] = self.request_id
        # Proxies between us and the client would collect the events otherwise.
        return kept | ({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} if self.is_stream else {})

    def __enter__(self) -> None:
        """Signs of life for as long as the block runs, whenever a stream was silent for too long. What is no stream can have none."""
        if self._kind is not None:
            self._beating = asyncio.create_task(self._beat(self._kind))

    def __exit__(self, *_: object) -> None:
        if self._beating is not None:
            self._beating.cancel()

    async def _beat(self, kind: Stream) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            while self.reader.between:
                if (left := self._written + self._silence_s - time.monotonic()) > 0:
                    await asyncio.sleep(left)
                    continue
                self._written = time.monotonic()
                target = await self._start({"content-type": kind.content_type})
                await target.write(kind.sign)

    async def fail(self, failure: errors.ApiError) -> web.StreamResponse:
        """Say it in the way that the answer's state still allows. Raises `failure` itself while nothing was sent."""
        target = self._target
        if target is None:
            raise failure
        if self._kind is not None and self.reader.between:
            with _clients_side():
                await target.write(self._kind.failure(failure, self.request_id, self.model))
                await target.write_eof()
        elif self._request.transport is not None:
            # A truncated body must not look whole.
            self._request.transport.abort()
        return target

    async def relay(
        self, source: aiohttp.ClientResponse, patience: Patience, server: Address, begin: Callable[[], None] | None = None
    ) -> web.StreamResponse:
        """Pass a server's answer on as it comes, and call `begin` at its first part.

        Raises ApiError on an answer that is none, that is not whole, and that is a refusal; and aiohttp.ClientError and TimeoutError of
        the server's side alone.
        """
        if source.status != 200:
            raise await _refusal(source)
        if strange := self._strange(source):
            raise errors.upstream_failed(self.model, strange)
        while chunk := await source.content.readany():
            server.heard = now = time.monotonic()
            if begin is not None:
                begin()
                begin = None
            if not (kept := self.reader.feed(chunk)):
                patience.wait()
                continue
            if not self.in_parts:
                raise errors.upstream_failed(self.model, "a longer answer than its question asks for")
            patience.since, self._written = None, now
            with _clients_side():
                target = await self._start(source.headers)
                await target.write(kept)
            patience.wait()
            if self.is_stream:
                await flow(source, self._put(patience, server))
                patience.since = None
                with _clients_side():
                    await self._request.writer.drain()
                patience.wait()
        rest = self.reader.rest()
        if rest is None:
            raise errors.upstream_failed(self.model, "an answer that is not whole")
        if self.finish is not None:
            try:
                rest = await self.finish(rest)
            except ValueError as error:
                raise errors.upstream_failed(self.model, str(error)) from None
        with _clients_side():
            if self._target is None and not self.is_stream:
                return await self._whole(source.headers, rest)
            target = await self._start(source.headers)
            await target.write_eof(rest)
        return target

    def _put(self, patience: Patience, server: Address) -> Callable[[bytes], bool]:
        """What passes a part of a begun answer on, and says whether the client keeps up. It is most of what a stream costs, so it makes no
        call that can be spared."""
        feed, client = self.reader.feed, self._request.protocol
        # To a client of HTTP/1.0 the end of the connection is the body's.
        chunked = cast(StreamWriter, self._request.writer).chunked

        def put(part: bytes) -> bool:
            patience.since = server.heard = now = time.monotonic()
            if kept := feed(part):
                self._written, transport = now, client.transport
                if transport is None or transport.is_closing():
                    raise ConnectionResetError("the client has left")
                transport.write(b"%x\r\n%b\r\n" % (len(kept), kept) if chunked else kept)
            return not client.writing_paused

        return put

    def _strange(self, source: aiohttp.ClientResponse) -> str:
        """Why this is no answer to the request, from its headers alone."""
        if source.headers.get("content-encoding", "identity") != "identity":
            return "a compressed answer, which it was told not to send"
        kind = _DOCUMENT if self._kind is None else self._kind.content_type
        # Ollama answers one document where there is nothing to stream: a request without a prompt, which loads the model.
        kinds = (kind, _DOCUMENT) if self.reader.stream == "ndjson" else (kind,)
        return "" if source.content_type in kinds else f"an answer of type {source.content_type[:64]!r} where {kind} belongs"


async def _refusal(source: aiohttp.ClientResponse) -> errors.ApiError:
    """A server's own words, in the shape of the API."""
    try:
        text = await body(source, _LONGEST_REFUSAL)
    except ValueError:
        text = b""
    return errors.upstream_said(source.status, text, source.headers.get("retry-after"))


@contextlib.contextmanager
def _clients_side() -> Iterator[None]:
    """aiohttp has one family of errors for both sides; what fails here is the client's leaving."""
    try:
        yield
    except aiohttp.ClientError as error:
        raise ConnectionResetError(str(error)) from None
