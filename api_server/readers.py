"""Who reads the metrics, and when they will have read the last of them: a process that ends takes what nobody has read with it."""

import asyncio
import time

_LONGEST_S = 60.0
"""Between two reads of one address; a reader that is slower is not waited for."""
_LATE = 1.25
"""A reader may be late by a quarter of its interval, for it waits for other answers, too."""


class Readers:
    """The addresses that read again and again, as a Prometheus does."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._interval_s: dict[str, float] = {}

    def read(self, address: str) -> None:
        """Note that somebody reads now."""
        now = time.monotonic()
        if (before := self._last.get(address)) is not None:
            self._interval_s[address] = now - before
        self._last[address] = now
        for gone in [each for each, last in self._last.items() if now - last > 2 * _LONGEST_S]:
            del self._last[gone]
            self._interval_s.pop(gone, None)

    async def have_all(self) -> None:
        """Wait until each has read what is counted now, or is overdue."""
        now = time.monotonic()
        due = {each: self._last[each] + _LATE * interval for each, interval in self._interval_s.items() if interval <= _LONGEST_S}
        while any(self._last.get(each, now) < now and time.monotonic() < when for each, when in due.items()):  # noqa: ASYNC110 (the time ends it, too)
            await asyncio.sleep(0.05)
