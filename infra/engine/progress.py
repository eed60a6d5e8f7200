"""A running `pulumi`: its lines as they come, signs of life while none comes, and the part of its output that says what went wrong."""

import json
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

QUIET_S = 12.0
"""Seconds without a line after which the caller looks up what the update waits for. The look takes up to 3 s more."""
_TELLING = ("Policies:", "Diagnostics:")
"""Headings in Pulumi's output. The lines below them say what went wrong."""


@dataclass(frozen=True)
class Watched:
    """What an update waits for that has printed nothing for a while."""

    lines: Sequence[str] = ()
    hopeless: str = ""
    """A cause that stays however long the update waits. The update is ended, and this is the error."""


def with_signs_of_life(stream: Iterable[str]) -> Iterator[str | None]:
    """The lines of a stream as they come, and None each time that QUIET_S seconds pass without a line that a person is shown."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    shown = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=max(0.0, shown + QUIET_S - time.monotonic()))
        except queue.Empty:
            yield None
            shown = time.monotonic()
            continue
        if line is None:
            return
        if is_progress(line):
            shown = time.monotonic()
        yield line


def is_progress(line: str) -> bool:
    """Whether a person is shown the line: a resource was changed."""
    text = line.strip()
    return text.startswith(("+", "-", "~")) and any(word in text for word in ("created (", "updated (", "deleted (", "replaced ("))


def failure(output: str, errors: str) -> str:
    """The part of Pulumi's output that says what went wrong."""
    if output.startswith("{"):
        said = [each["message"].strip() for each in json.loads(output).get("diagnostics", []) if each.get("severity") == "error"]
        return "\n".join(line.removeprefix("error: ") for line in said if line != "error: preview failed" or len(said) == 1)
    lines = (output + errors).splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith(_TELLING)), None)
    if start is None:
        return "\n".join(line for line in lines if line.strip())[-4000:]
    found: list[str] = []
    for line in lines[start + 1 :]:
        if line.startswith(("Resources:", "Outputs:", "Duration:")):
            break
        if line.strip() and not line.startswith(_TELLING):
            found.append(line.strip())
    return "\n".join(found)
