"""Signs of life of a running operation."""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

QUIET_S = 12.0
"""Seconds without a line after which the caller looks up what the operation waits for. The look takes up to 3 s more."""
Event = TypeVar("Event")


@dataclass(frozen=True)
class Watched:
    """What an update waits for that has printed nothing for a while."""

    lines: Sequence[str] = ()
    hopeless: str = ""
    """A cause that stays however long the update waits. The update is ended, and this is the error."""


def with_signs_of_life(events: "queue.SimpleQueue[Event | None]", line: Callable[[Event], str]) -> Iterator[tuple[Event | None, str]]:
    """The events of a queue, which ends with None, each with its line for a person, which most do not have.

    Between them (None, nothing), each time that QUIET_S seconds pass without a line.
    """
    last = time.monotonic()
    while True:
        try:
            event = events.get(timeout=max(0.0, last + QUIET_S - time.monotonic()))
        except queue.Empty:
            yield None, ""
            last = time.monotonic()
            continue
        if event is None:
            return
        said = line(event)
        if said:
            last = time.monotonic()
        yield event, said
