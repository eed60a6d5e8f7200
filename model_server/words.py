"""What an engine says at last: standard error is passed on as it comes, and its end is kept for whoever asks why the engine ended."""

import asyncio
import contextlib
import re
import sys
from pathlib import Path

_PIECE = 65_536
_KEPT = 16_384
_LONGEST = 4096
"""Bytes that a kubelet takes of a container's last words. Source: Kubernetes, pkg/kubelet/container, MaxPodTerminationMessageLogLength."""
_CAUSES = tuple(map(re.compile, (r"^\S+ E ", r"^Value error, ", r"\b[A-Z]\w*(Error|Exception): \S", r"rror")))
"""How lines look that name an error: llama.cpp's, pydantic's, Python's, others. What follows the first of a kind is what came of it."""
_LESS = re.compile(r"\b(WARNING|INFO|DEBUG)\b")


class LastWords:
    """Of one engine."""

    def __init__(self) -> None:
        self._kept = b""
        self._task: asyncio.Task[None] | None = None

    def follow(self, stream: asyncio.StreamReader) -> None:
        """Pass on what comes, until there is no more."""
        self._task = asyncio.create_task(self._follow(stream))

    async def _follow(self, stream: asyncio.StreamReader) -> None:
        while piece := await stream.read(_PIECE):
            sys.stderr.buffer.write(piece)
            sys.stderr.buffer.flush()
            self._kept = (self._kept + piece)[-_KEPT:]

    async def end(self) -> None:
        """Of an engine that has ended: what is still on its way. Processes of its own may hold the pipe open, so not for long."""
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await asyncio.shield(self._task)

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in self._kept.decode(errors="replace").splitlines() if line.strip()]

    @property
    def reason(self) -> str:
        """The first line that names an error, or else the last one; empty where nothing was said."""
        lines = self.lines
        named = (line for cause in _CAUSES for line in lines if cause.search(line) and not _LESS.search(line))
        return next(named, lines[-1] if lines else "")[:300]


def leave(path: Path, said: list[str], reason: str) -> None:
    """For the kubelet: the end of what was said, and why, as the last line."""
    kept = "\n".join([*said[-40:], reason]).encode()[-_LONGEST:]
    with contextlib.suppress(OSError):
        path.write_bytes(kept)
