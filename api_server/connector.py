"""Connections to servers: aiohttp's, with a way to take each part of an answer at the moment at which it is there."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler


class Connector(aiohttp.TCPConnector):
    """To be made within an event loop."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # aiohttp 3.14 has this one place for it, if not a public one; tests/service/test_parts.py sees that it is still the place.
        self._factory = functools.partial(ServerConnection, loop=asyncio.get_running_loop())


class ServerConnection(ResponseHandler):
    """One connection."""

    take: Callable[[], None] | None = None
    """Called whenever something came: a part, the end, or the loss of the connection. It must raise nothing."""
    was_held = False
    """Whether too much came at once: then reading a part lets the parser go on, and there is more to read than what a callback sees."""

    def data_received(self, data: bytes) -> None:
        ResponseHandler.data_received(self, data)
        # Empty: what had come before, and is read on. Whoever takes parts is about to see it.
        if data and self.take is not None:
            self.take()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self.take is not None:
            self.take()

    def pause_reading(self) -> None:
        self.was_held = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Nothing where nothing is paused: aiohttp would parse an empty part after each read."""
        if self._reading_paused or self._buffer_paused:
            self.was_held = True
            super().resume_reading(resume_parser)


async def flow(source: aiohttp.ClientResponse, put: Callable[[bytes], bool]) -> None:
    """Give `put` each part of a body within the callback that read it: to wake a task for each costs an eighth more (bench/gateway.py).

    Ends where `put` says False, or when something else than a part has come, which is then still to be read as always. Raises what `put`
    raises, and aiohttp.ClientError where the connection was lost.
    """
    connection, content = source.connection, source.content
    server = connection.protocol if connection is not None else None
    if not isinstance(server, ServerConnection):
        return
    over = asyncio.get_running_loop().create_future()

    def take() -> None:
        if over.done():
            return
        try:
            part = content.read_nowait()
            if (part and not put(part)) or server.was_held or content.is_eof():
                over.set_result(None)
        except Exception as error:
            over.set_exception(error)
            # A request that ends at this moment waits for it no more.
            over.exception()

    server.take, server.was_held = take, False
    try:
        # What came since the last part was read.
        take()
        await over
    finally:
        server.take = None
