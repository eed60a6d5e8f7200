"""The beginning of a connection with TLS. It counts as a connection from its first byte on, and has a time.

asyncio's own server tells nobody of a connection before its handshake has ended: those that never end would have no bound.
"""

import asyncio
import contextlib
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable

from api_server.connections import Connection, Connections
from api_server.tls import Certificate

BUFFER_BYTES = 32 * 2**10
"""That asyncio keeps for each connection with TLS; its own are 256 KiB, and a record of TLS has 16."""


def save_memory() -> None:
    """Before the first handshake of the process."""
    SSLProtocol.max_size = BUFFER_BYTES


class Handshake(asyncio.Protocol):
    """One connection until its handshake ends. Then a `Connection` has its place."""

    _running: "set[asyncio.Task[None]]" = set()  # noqa: RUF012 (the loop alone keeps no task)

    def __init__(self, certificate: Certificate, connections: Connections, follows: Callable[[], Connection]) -> None:
        self._certificate, self._connections, self._follows = certificate, connections, follows
        self._transport: asyncio.Transport | None = None
        self._early = b""
        """What came with the end of the handshake."""
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a server of asyncio's makes no other)
        self._transport = transport
        if not self._connections.opened(self):
            # Without a handshake nothing can be said that the client would read.
            transport.abort()
            return
        transport.pause_reading()
        task = asyncio.create_task(self._shake_hands(transport))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def make_room(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._early += data

    def connection_lost(self, exc: BaseException | None) -> None:
        self._lost = True
        self._connections.closed(self)

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        loop, limit_s = asyncio.get_running_loop(), self._connections.head_s
        secured: asyncio.Transport | None = None
        # Who speaks no TLS, or leaves, or takes too long, is gone; nothing of it is a fault of ours.
        with contextlib.suppress(OSError):
            context = self._certificate.now()
            secured = await loop.start_tls(transport, self, context, server_side=True, ssl_handshake_timeout=limit_s)
        self._connections.closed(self)
        if secured is None or self._lost:
            transport.abort()
            return
        connection = self._follows()
        secured.set_protocol(connection)
        connection.connection_made(secured)
        if self._early:
            connection.data_received(self._early)
