"""A command is never silent for long: while nothing new happens, it says again what it is at."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

EVERY_S = 10.0
"""Between two words."""


class _Heard:
    """A stream that remembers its last line, and since when that is all."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._line, self._ended = "", True
        self._since = self._said = time.monotonic()

    def write(self, text: str) -> int:
        with self._lock:
            if lines := text.strip().splitlines():
                self._line, self._since = lines[-1], time.monotonic()
            if text:
                self._ended = text.endswith("\n")
            self._said = time.monotonic()
            return self._stream.write(text)

    def say_again(self, every_s: float) -> None:
        """Unless something was said in the meantime, or a question is open, which ends without an end of line."""
        with self._lock:
            now = time.monotonic()
            if self._line and self._ended and now - self._said >= every_s:
                self._said = now
                self._stream.write(f"{self._line} … {now - self._since:.0f} s so far\n")
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def heard(every_s: float = 0.0) -> Iterator[None]:
    """While the block runs, whatever is said to standard error is said again every so many seconds (EVERY_S), until something else is."""
    every_s = every_s or EVERY_S
    ended, stream = threading.Event(), _Heard(sys.stderr)

    def watch() -> None:
        while not ended.wait(every_s / 10):
            stream.say_again(every_s)

    watching = threading.Thread(target=watch, daemon=True)
    with redirect_stderr(stream):  # pyright: ignore[reportArgumentType] (it has all that the stream has)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()
