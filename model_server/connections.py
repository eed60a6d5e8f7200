"""Clients' connections: how many there are, how long a head and a body may take, and what is said to what is no HTTP.

aiohttp bounds the bytes of a head; it gives a new connection an hour for its first request, a body for ever, and answers what it cannot
parse with a page of its own.
"""

import asyncio
import json
import socket
from http import HTTPStatus
from typing import Any

from aiohttp import web

from model_server.errors import ApiError

_UNREAD_MS = 60_000
"""A connection is cut when its client took nothing of what was sent for so long."""


class Connections:
    """All connections of one process. At the limit, the one that idles longest makes room; when all work, a new one is refused."""

    def __init__(self, most: int, head_s: float) -> None:
        self._most = most
        self.head_s = head_s
        self._every: dict[Connection, None] = {}
        """In the order of their last requests."""

    def opened(self, connection: "Connection") -> bool:
        """False when there is no room for it."""
        if len(self._every) >= self._most:
            idle = next((each for each in self._every if each.idles), None)
            if idle is None:
                return False
            self.closed(idle)
            idle.force_close()
        self._every[connection] = None
        return True

    def asked(self, connection: "Connection") -> None:
        """It has a new request."""
        if connection in self._every:
            self._every[connection] = self._every.pop(connection)

    def closed(self, connection: "Connection") -> None:
        self._every.pop(connection, None)


class Connection(web.RequestHandler):
    """One connection, with what aiohttp does not limit. Every answer has the shape of an API's."""

    def __init__(self, connections: Connections, manager: web.Server, **settings: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **settings)
        self._connections = connections
        self._head_end: asyncio.TimerHandle | None = None

    @property
    def idles(self) -> bool:
        """Whether no request of it is in work."""
        return self._current_request is None and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a server of asyncio's makes no other)
        if not self._connections.opened(self):
            message = "this server: got more connections than it takes, want fewer; try again"
            transport.write(_raw(ApiError(503, "server_error", message, "server_busy", {"Retry-After": "2"})))
            transport.close()
            # What aiohttp would do at the end of a connection, for one that it never knew.
            self._manager = None
            return
        super().connection_made(transport)
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
            self._connections.asked(self)
        elif self.idles and self._head_end is None:
            self._await_head()

    def _await_head(self) -> None:
        limit_s = self._connections.head_s
        message = f"request: got no end of its head within {limit_s:g} s, want it sooner; send it in one piece"
        late = ApiError(408, "invalid_request_error", message, "request_timeout")
        self._head_end = asyncio.get_running_loop().call_later(limit_s, self._refuse, late)

    def _head_came(self) -> None:
        if self._head_end is not None:
            self._head_end.cancel()
            self._head_end = None

    def _refuse(self, error: ApiError) -> None:
        if self.transport is not None:
            self.transport.write(_raw(error))
        self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        said = str(message or "").partition("\n")[0][:200]
        kind = "invalid_request_error" if status < 500 else "server_error"
        response = ApiError(status, kind, f"request: got no HTTP ({said}), want HTTP/1.1; correct it").response("openai")
        response.force_close()
        return response


def _raw(error: ApiError) -> bytes:
    """An answer to a connection without a request."""
    said = json.dumps(error.body("openai")).encode()
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", "Content-Type: application/json", f"Content-Length: {len(said)}"]
    lines += [*(f"{name}: {value}" for name, value in (error.headers or {}).items()), "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + said
