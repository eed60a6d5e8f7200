"""Bodies of requests: read in a bounded time, with a bounded number of bytes and JSON values, within the memory of the pod.

A body may be small and its values large: `[{},{},…]` takes 24 times its bytes. So the values are counted while the body comes in, before
it is parsed, and what a request may take of the memory is reserved for as long as it is needed.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from api_server import errors
from api_server.values import Values

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of control groups, version 2 and 1. Both have a number without meaning, or a word, where there is no limit."""
_SHARE = 0.6
"""Of the memory that is left when the process has started. The rest is for answers, connections, and what the allocator keeps."""
_NARROW, _WIDE = 4, 13
"""Bytes of memory for one byte of a body: of ASCII, where Python needs one byte a character, and of anything else, where one character
makes all of its text four bytes wide. Body, text, values and the new body; bench/intake.py measures it."""
_VALUE = 250
"""Bytes of memory for a JSON value or key at most, the same. A dictionary with one key takes 184."""
_SLOWEST = 32 * 2**10
"""Bytes of a body for which it may take a second more."""
_LARGE = 256 * 2**10
"""Bytes; a body from here on is parsed beside the loop: a millisecond of each is felt by all streams."""
_RETRY_S = 2
T = TypeVar("T")


def memory() -> int:
    """Bytes that this process may use: its control group's limit, or the machine's memory."""
    machine = int(Path("/proc/meminfo").read_text(encoding="ascii").split("MemTotal:")[1].split()[0]) * 1024
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            return min(machine, int(path.read_text(encoding="ascii")))
    return machine


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


class Budget:
    """Memory for all bodies in flight."""

    def __init__(self, memory_bytes: int) -> None:
        self.whole = max(2**20, int(_SHARE * (memory_bytes - resident())))
        self.used = 0


class Claim:
    """What one request has of the budget, given back at the end of a `with` at the latest."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0
        """Bytes."""

    def grow(self, need: int) -> None:
        """Have so many bytes. Raises ApiError: 413 when they can never be had, 429 when others have them now."""
        if need > self._budget.whole:
            raise errors.too_large(f"a body that takes more than {self._budget.whole} bytes of memory")
        if not self.fits(need):
            raise errors.no_memory(_RETRY_S)
        more = max(0, need - self.held)
        self._budget.used += more
        self.held += more

    def fits(self, need: int) -> bool:
        """Whether so many bytes can be had now."""
        return self._budget.used + max(0, need - self.held) <= self._budget.whole

    def free(self) -> None:
        self._budget.used -= self.held
        self.held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class Intake:
    """Reads bodies for one process."""

    def __init__(self, budget: Budget, max_bytes: int, max_values: int, pause_s: float) -> None:
        self._budget = budget
        self._max_bytes = max_bytes
        self._max_values = max_values
        self._pause_s = pause_s
        # One: two large bodies at once would only share one interpreter lock, and need twice the memory.
        self._beside = ThreadPoolExecutor(1, "bodies")

    def claim(self) -> Claim:
        """What a request takes of the budget: nothing yet."""
        return Claim(self._budget)

    async def read(self, request: web.Request, claim: Claim) -> bytes:
        """The body. Raises ApiError on one that is too large, has too many values, is too slow, or is no HTTP."""
        length = request.content_length or 0
        if length > self._max_bytes:
            raise errors.too_large(f"{length} bytes, want at most {self._max_bytes}")
        claim.grow(_NARROW * length)
        values, chunks, received, a_byte, last = Values(self._max_values), [], 0, _NARROW, b""
        started = time.monotonic()
        while chunk := await self._next(request, started + 2 * self._pause_s + received / _SLOWEST - time.monotonic()):
            received += len(chunk)
            if received > self._max_bytes:
                raise errors.too_large(f"more than {self._max_bytes} bytes")
            if not values.add(chunk):
                raise errors.too_large(f"more than {self._max_values} JSON values")
            if a_byte == _NARROW and (not chunk.isascii() or b"\\u" in chunk or last + chunk[:1] == b"\\u"):
                a_byte = _WIDE
            if not claim.fits(a_byte * received + _VALUE * values.count) and claim.fits(a_byte * received):
                # Code has more marks in its strings than its body has values.
                await self.beside(received, values.settle)
            claim.grow(a_byte * received + _VALUE * values.count)
            chunks.append(chunk)
            last = chunk[-1:]
        return b"".join(chunks)

    async def _next(self, request: web.Request, left_s: float) -> bytes:
        try:
            # Most bodies came with their heads, and need no timer.
            if (there := request.content.read_nowait()) or request.content.at_eof():
                return there
            async with asyncio.timeout(min(self._pause_s, left_s)):
                return await request.content.readany()
        except TimeoutError:
            raise errors.too_slow() from None
        except (aiohttp.ClientPayloadError, web.RequestPayloadError, HttpProcessingError) as error:
            raise errors.bad_request(f"body: got {type(error).__name__}, want a whole one as its headers say; correct it") from None

    async def beside(self, size: int, work: Callable[[], T]) -> T:
        """The result of work on so many bytes, done beside the loop when they are many."""
        if size < _LARGE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._beside, work)
