"""What the user hears: refusals of one line, progress, and the end that the user asked for."""

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

_EVERY_S = 10.0
"""Between two signs of life of one step; nobody waits for longer than 15 s without a word."""


class UserError(Exception):
    """`<what>: got X, want Y; do Z`. Said without a traceback."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM, or the terminal was closed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_SIGNALS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]


def catch_signals() -> None:
    """From here on they raise Stopped. One that is ignored stays so: that is how nohup works."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def ignore_signals() -> None:
    """While everything is being ended, which has a time limit of its own."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def say(text: str) -> None:
    print(f"modelfleet: {text}", file=sys.stderr, flush=True)


class Step:
    """One thing that takes time: said when it starts, and again while it lasts."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._said = time.monotonic()
        say(what)

    def tick(self, detail: Callable[[], str] | None = None) -> None:
        """Call it often; `detail` is asked for only when something is said."""
        now = time.monotonic()
        if now - self._said >= _EVERY_S:
            self._said = now
            say(f"{self._what}: {now - self._started:.0f} s{f', {detail()}' if detail else ''}")
