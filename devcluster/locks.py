"""Locks between processes; whoever waits for one says for whom."""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAY_EVERY_S = 15.0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of that file; the kernel lets it go when the process ends, however it ends. The holder may delete the file.

    A wait is said at once, and again every 15 s, with the process that holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    said = float("-inf")
    while (descriptor := _taken(path)) is None:
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            print(f"waiting: {path.name} is held by {_holder(path)}", file=sys.stderr, flush=True)
        time.sleep(0.1)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def tried(path: Path) -> Iterator[bool]:
    """Hold the lock if nobody has it; says whether it is held."""
    descriptor = _taken(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _taken(path: Path) -> int | None:
    """The open lock, or None while another process has it, or had it and deleted the file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"
