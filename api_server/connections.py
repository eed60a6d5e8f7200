"""Clients' connections: how many there are, how long a head may take, and what is said to what is no HTTP.

aiohttp gives a new connection an hour for its first request, and answers what it cannot parse with a page of its own.
"""

import asyncio
import contextlib
import json
import logging
import resource
import socket
from http import HTTPStatus
from typing import Any, Protocol, cast

from aiohttp import web

from api_server import errors

log = logging.getLogger("api_server")
_UNREAD_MS = 60_000
"""A connection is cut when its client took nothing of what was sent for so long."""
_LONGEST_HEAD = 128 * 2**10
"""Bytes. A single header may have half of it."""
_A_CONNECTION = 64 * 2**10
"""Memory for one, which mostly idles; a head, or a body that is not read yet, may take twice as much."""
SECURED_BYTES = 128 * 2**10
"""The same with TLS."""
_FEWEST, _MOST = 256, 10_000
_OTHER_FILES = 64


def most_connections(memory_bytes: int, wanted: int = 0, *, secured: bool = False) -> int:
    """How many connections a process may have: `wanted`, or as many as an eighth of this memory has room for, and never more than it may
    open files for. A container's processes often start with 1024, and may have half a million."""
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Refused where the kernel's own limit is below the hard one.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        files = hard
    most = wanted or min(_MOST, max(_FEWEST, memory_bytes // 8 // (SECURED_BYTES if secured else _A_CONNECTION)))
    # A client's, its server's, and one of a server that idles since the request before.
    room = max(1, (files - _OTHER_FILES) // 3)
    if files == resource.RLIM_INFINITY or most <= room:
        return most
    log.warning("open files: got a limit of %d, want %d for %d connections; serving %d", files, 3 * most + _OTHER_FILES, most, room)
    return room


class Held(Protocol):
    """A connection that counts: a client's, or one whose handshake has not ended."""

    def make_room(self) -> None:
        """End at once: another one takes its place."""


class Connections:
    """All connections of one process. At the limit, the one that idles longest makes room; when all work, a new one is refused."""

    def __init__(self, most: int, head_s: float) -> None:
        self.most = most
        self.head_s = head_s
        self.every: set[Held] = set()
        self._idle: dict[Held, None] = {}
        """In the order in which they became idle."""

    def opened(self, connection: Held) -> bool:
        """False when there is no room for it."""
        if len(self.every) >= self.most:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                return False
            self.closed(oldest)
            oldest.make_room()
        self.every.add(connection)
        self._idle[connection] = None
        return True

    def works(self, connection: Held) -> None:
        self._idle.pop(connection, None)

    def idles(self, connection: Held) -> None:
        if connection in self.every:
            self._idle[connection] = None

    def closed(self, connection: Held) -> None:
        self.every.discard(connection)
        self._idle.pop(connection, None)


class Connection(web.RequestHandler):
    """One connection, with what aiohttp does not limit."""

    def __init__(self, connections: Connections, manager: web.Server, **settings: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **settings)
        self._connections = connections
        self._head_bytes = 0
        self._head_end: asyncio.TimerHandle | None = None
        self._working = False
        self._secured: asyncio.Transport | None = None

    def make_room(self) -> None:
        self.force_close()
        if self._secured is not None:
            # Closing waits for the client to say that it has heard of it, half a minute if it says nothing.
            self._secured.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are one, and do not say so.
        transport = cast(asyncio.Transport, transport)
        if not self._connections.opened(self):
            transport.write(_raw(errors.no_connection(2)))
            transport.close()
            # What aiohttp would do at the end of a connection, for one that it never knew.
            self._manager = None
            return
        super().connection_made(transport)
        self._secured = transport if transport.get_extra_info("ssl_object") is not None else None
        # A client that reads nothing of its answer would hold a server's place for ever.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.closed(self)
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._manager is None:
            return
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._head_came()
            self._working = True
            self._connections.works(self)
        elif not self._working:
            self._head_bytes += len(data)
            if self._head_bytes > _LONGEST_HEAD:
                self._refuse(errors.head_too_large(_LONGEST_HEAD))
            elif self._head_end is None:
                self._await_head()

    def answered(self, request: web.BaseRequest) -> None:
        """A request has its answer. The connection works on while a part of the body is still to come, and while other requests wait."""
        self._working = bool(self._messages) or not request.content.is_eof()
        if not self._working:
            self._connections.idles(self)

    def _await_head(self) -> None:
        limit_s = self._connections.head_s
        self._head_end = asyncio.get_running_loop().call_later(limit_s, self._refuse, errors.head_too_slow(limit_s))

    def _head_came(self) -> None:
        self._head_bytes = 0
        if self._head_end is not None:
            self._head_end.cancel()
            self._head_end = None

    def _refuse(self, error: errors.ApiError) -> None:
        if self.transport is not None:
            self.transport.write(_raw(error))
        self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What aiohttp says of what is no HTTP, in the shape of every other error."""
        if exc is not None and status >= 500:
            log.error("connection: %s", type(exc).__name__)
        said = errors.internal() if status >= 500 else errors.no_http(status, str(message or "").partition("\n")[0])
        response = said.response()
        response.force_close()
        return response


def _raw(error: errors.ApiError) -> bytes:
    """An answer to a connection without a request."""
    body = json.dumps(error.body).encode()
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [*(f"{name}: {value}" for name, value in error.headers.items()), "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body
