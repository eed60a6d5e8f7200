"""How long a request waits for a server that says nothing."""

import asyncio
import time
from typing import Self


class Patience:
    """Ends the block with TimeoutError when its server was waited for, and said nothing, for so many seconds. It has one timer: a new one
    for each part of an answer would cost more than the part."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._end = asyncio.timeout(None)
        self._look_again: asyncio.TimerHandle | None = None
        self.since: float | None = None
        """When the wait began, by the monotonic clock; None while it is the client that is waited for."""

    def wait(self) -> None:
        """The server's silence counts from now on."""
        self.since = time.monotonic()

    async def __aenter__(self) -> Self:
        await self._end.__aenter__()
        self.wait()
        self._watch(self._limit_s)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool | None:
        if self._look_again is not None:
            self._look_again.cancel()
        return await self._end.__aexit__(kind, error, None)

    def _watch(self, after_s: float) -> None:
        self._look_again = asyncio.get_running_loop().call_later(after_s, self._look)

    def _look(self) -> None:
        left_s = self._limit_s if self.since is None else self.since + self._limit_s - time.monotonic()
        if left_s > 0:
            self._watch(left_s)
        else:
            self._end.reschedule(asyncio.get_running_loop().time())
