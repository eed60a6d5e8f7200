"""How those that write into a directory and the one keeper of it agree on its size, however fast they write and whoever of them is killed.

A writer has a file of its own, and a lock on it for as long as it lives. The file says how many bytes it is done with, since it began:
written, failed, or found to be there already. The keeper allows each writer a sum, in a file beside it, and only ever raises it. A writer
begins no file that would bring what it has begun above that sum. So what is in the directory stays below

    bytes that a look found + for each writer (allowed - done before that look)

and the keeper allows no more than makes this the limit. What a look counts twice, because it was written meanwhile, makes the sum safer. A
keeper that is killed has allowed nothing that was not counted, a writer that is killed needs nothing any more, and what each has to know
of the other is in the directory. Imported by vLLM's Python too: of Python's own library alone.
"""

import fcntl
import os
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WRITERS, BLOCKS = "writers", "blocks"
"""Below the tier's directory: what this module writes, and vLLM's files."""
PAGE = 4096
"""Bytes that a file or a directory takes at least on usual file systems."""
_DONE, _ALLOWED, _NEW = ".done", ".allowed", ".new"
_FORM = struct.Struct("<QQ")
_ASK_S = 0.1
"""Seconds between two looks at a sum that was too small."""


def taken(size: int) -> int:
    """Bytes of disk that a file of `size` bytes takes, in whole pages."""
    return -(-size // PAGE) * PAGE


def cost(size: int) -> int:
    """What beginning a file of `size` bytes may add to the directory: the file, and the two directories that it may be the first in."""
    return taken(size) + 2 * PAGE


class Writer:
    """One process that writes files of its own below the directory. `base` is the first part of the names of its directories there, which
    says whose files it uses. Safe for threads. Raises OSError."""

    def __init__(self, directory: Path, base: str) -> None:
        folder = directory / WRITERS
        folder.mkdir(parents=True, exist_ok=True)
        (directory / BLOCKS).mkdir(exist_ok=True)
        path = folder / f"{base}.{uuid.uuid4().hex}"
        # It has its name only when it is locked: a keeper would take it for a dead one's.
        self._file = os.open(path.with_name(path.name + _NEW), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        # By the clock of the file system, which is that of the files.
        self._born = os.fstat(self._file).st_mtime_ns
        os.pwrite(self._file, _FORM.pack(0, self._born), 0)
        path.with_name(path.name + _NEW).rename(path.with_name(path.name + _DONE))
        self._sum = path.with_name(path.name + _ALLOWED)
        self._lock = threading.Lock()
        self._begun = self._done = self._allowed = 0
        self._asked = 0.0
        self.refused = 0
        """Files that it had no room for."""

    def may_begin(self, size: int) -> bool:
        """Whether a file of `size` bytes may be written now; then `end` is owed."""
        with self._lock:
            wanted = self._begun + cost(size)
            if wanted > self._allowed and time.monotonic() - self._asked > _ASK_S:
                self._allowed, self._asked = max(self._allowed, _sum(self._sum)), time.monotonic()
            if wanted > self._allowed:
                self.refused += 1
                return False
            self._begun = wanted
            return True

    def end(self, size: int) -> None:
        """A file of `size` bytes that was begun is there, or will not be."""
        with self._lock:
            self._done += cost(size)
            os.pwrite(self._file, _FORM.pack(self._done, self._born), 0)

    def close(self) -> None:
        os.close(self._file)


@dataclass(frozen=True)
class Known:
    """What a keeper knows of a writer that lives."""

    base: str
    path: Path
    done: int
    allowed: int
    born_ns: int
    """When it began, by the clock of the file system."""

    @property
    def open(self) -> int:
        """Bytes that it may still add to what a later look finds."""
        return max(0, self.allowed - self.done)

    def allow(self, more: int) -> None:
        """Raises OSError."""
        new = self.path.with_name(self.path.name + _NEW)
        new.write_bytes(_FORM.pack(self.allowed + more, 0))
        new.replace(self.path.with_name(self.path.name + _ALLOWED))


def writers(directory: Path) -> Iterator[Known]:
    """Those that live; the files of others are removed. Raises OSError."""
    folder = directory / WRITERS
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob(f"*{_DONE}")):
        name = path.with_name(path.name.removesuffix(_DONE))
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            if _is_free(file):
                # Its sum first: a name without one is a writer that may do nothing.
                name.with_name(name.name + _ALLOWED).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                continue
            done, born = _FORM.unpack(os.pread(file, _FORM.size, 0))
        finally:
            os.close(file)
        yield Known(name.name.rpartition(".")[0], name, done, _sum(name.with_name(name.name + _ALLOWED)), born)


def _is_free(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sum(path: Path) -> int:
    try:
        return _FORM.unpack(path.read_bytes())[0]
    except FileNotFoundError:
        return 0


class Alone:
    """The right to keep a directory: of one process at a time, wherever the others are that see it. Raises OSError."""

    def __init__(self, directory: Path) -> None:
        (directory / WRITERS).mkdir(parents=True, exist_ok=True)
        self._file = os.open(directory / WRITERS / "keeper", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self.held = False

    def take(self) -> bool:
        """Whether it is ours, from now on or already."""
        self.held = self.held or _is_free(self._file)
        return self.held
