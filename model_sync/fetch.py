"""One blob from its source into a store: resumed, slowed down when asked, hashed on the way, named last.

A source may cut, trickle, lie and repeat itself; what that costs us is linear in the size that the configuration allows.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from model_sync.digests import Digest
from model_sync.patience import ATTEMPTS
from model_sync.source import Source, SourceError, Stream, pause, reason
from model_sync.store import CHUNK_BYTES, StoreError, name_whole

LEAST_BYTES_PER_S = 64 << 10
"""A connection that brings less, over the time that a source may be silent, is given up."""
_STEPS = 10_000
"""A source that breaks off again and again has made progress by this part of the model: so many connections are the most that it gets,
times the attempts."""
_BLOCK_BYTES = 64 << 10
_ON_ITS_WAY_BYTES = 16 << 20
"""After so many the disk is told to begin. Left to itself the kernel waits for a tenth of the memory, and whoever names the blob waits for
all of that."""


class Pace:
    """At most so many bytes a second, over all blobs together; 0 is unlimited."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._due = time.monotonic()

    def passed(self, count: int) -> None:
        if self._rate:
            now = time.monotonic()
            self._due = max(self._due, now) + count / self._rate
            time.sleep(max(0.0, self._due - now))


@dataclass
class Target:
    """Where a blob goes, and what must be true of it."""

    path: Path
    digest: str
    size: int | None
    """Exact bytes, where they are known."""
    limit: int
    """Bytes that it may have at most."""
    room: Callable[[], int]
    """Bytes that may still be written."""

    @property
    def partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def most(self) -> int:
        return self.limit if self.size is None else self.size


@dataclass
class _Partial:
    """What came so far. Its hash goes on from connection to connection: no byte on the disk is read twice."""

    path: Path
    length: int = 0
    starts: int = 0
    """How often it began again at its first byte."""
    _hash: Digest = field(default_factory=Digest)

    @classmethod
    def found(cls, target: Target) -> "_Partial":
        """What an earlier run left, hashed once; nothing when it is longer than the blob may be."""
        partial = cls(target.partial)
        if not partial.path.is_file() or partial.path.stat().st_size > target.most:
            partial.drop()
            return partial
        with partial.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                partial.passed(chunk)
        return partial

    @property
    def digest(self) -> str:
        return str(self._hash)

    def passed(self, block: bytes) -> None:
        self._hash.update(block)
        self.length += len(block)

    def start_again(self) -> None:
        self._hash, self.length, self.starts = Digest(), 0, self.starts + 1

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self._hash, self.length = Digest(), 0


@dataclass
class _Patience:
    """How many connections a source gets."""

    attempts: int
    step: int
    """Bytes of progress after which failures are forgotten."""
    reached: int
    failures: int = 0

    def is_over(self, partial: _Partial) -> bool:
        """After one more failure."""
        if partial.length >= self.reached + self.step:
            self.failures, self.reached = 0, partial.length
        self.failures += 1
        return self.failures >= self.attempts or partial.starts > self.attempts


def fetch(source: Source, target: Target, pace: Pace, attempts: int = ATTEMPTS) -> None:
    """Raises StoreError when the source is refused, SourceError when it breaks off too often; then the next run goes on from there."""
    partial = _Partial.found(target)
    resumed, step = partial.length > 0, max(_BLOCK_BYTES, target.most // _STEPS)
    patience = _Patience(attempts, step, partial.length)
    while True:
        try:
            _connection(source, target, partial, pace)
        except (OSError, HTTPException, SourceError) as error:
            _refuse_full_disk(error, target)
            if patience.is_over(partial):
                got = f"{source.url}: got {reason(error, source.access)} after {partial.length} bytes"
                want = f"want {target.size or 'all of it'}; check the source, the next run goes on from there"
                raise SourceError(f"{got}, {want}") from None
            pause(patience.failures, error)
            continue
        if partial.digest == target.digest:
            name_whole(target.partial, target.path)
            return
        found = partial.digest
        partial.drop()
        if not resumed:
            raise StoreError(f"{source.url}: got content {found}, want {target.digest}; do not use it, or correct models.<name>.digest")
        # What an earlier run left may be the damaged part.
        resumed, patience = False, _Patience(attempts, step, 0)


def _connection(source: Source, target: Target, partial: _Partial, pace: Pace) -> None:
    """Up to the end of the content, or of the connection."""
    if partial.length and partial.digest == target.digest:
        return
    stream = source.open(partial.length)
    with closing(stream.file), target.partial.open("r+b" if partial.length else "wb") as writer:
        if stream.start not in (0, partial.length):
            got = f"{source.url}: got a range from {stream.start}, want one from {partial.length}"
            raise StoreError(f"{got}; the server is broken, use another")
        if stream.start != partial.length:
            partial.start_again()
        writer.seek(partial.length)
        writer.truncate()
        expected = _expected(source, stream, target)
        if expected is not None and expected - partial.length > target.room():
            free = f"{target.path.parent.parent}: got {target.room()} bytes free"
            raise StoreError(f"{free}, want {expected - partial.length} for {source.url}; enlarge storage.shared.size")
        flow, begun = _Flow(stream, source.access.timeout_s), partial.length
        while block := flow.read():
            if partial.length + len(block) > (target.limit if expected is None else expected):
                raise _too_long(source, target, partial.length + len(block))
            writer.write(block)
            partial.passed(block)
            pace.passed(len(block))
            if partial.length - begun >= _ON_ITS_WAY_BYTES:
                # What is dirty begins its way to the disk, and stays in the cache meanwhile; nobody waits.
                os.posix_fadvise(writer.fileno(), begun, partial.length - begun, os.POSIX_FADV_DONTNEED)
                begun = partial.length
        writer.flush()
        os.fsync(writer.fileno())
    if partial.length < (1 if expected is None else expected):
        raise SourceError("the end of the content")


class _Flow:
    """Blocks of a stream, while they come fast enough. The time that we take ourselves does not count."""

    def __init__(self, stream: Stream, window_s: float) -> None:
        self._file, self._window_s = stream.file, window_s
        self._waited_s, self._count = 0.0, 0

    def read(self) -> bytes:
        started = time.monotonic()
        # What is there: a full block may be days away.
        block = self._file.read1(_BLOCK_BYTES)
        self._waited_s += time.monotonic() - started
        self._count += len(block)
        if self._waited_s >= self._window_s:
            if block and self._count < self._waited_s * LEAST_BYTES_PER_S:
                raise SourceError(f"{self._count} bytes in {self._waited_s:.0f} s")
            self._waited_s, self._count = 0.0, 0
        return block


def _expected(source: Source, stream: Stream, target: Target) -> int | None:
    if target.size is not None and stream.total is not None and stream.total != target.size:
        raise StoreError(
            f"{source.url}: got {stream.total} bytes, want {target.size}; the source is damaged or lies, publish the model again"
        )
    expected = stream.total if target.size is None else target.size
    if expected is not None and expected > target.limit:
        raise _too_long(source, target, expected)
    return expected


def _too_long(source: Source, target: Target, length: int) -> StoreError:
    target.partial.unlink(missing_ok=True)
    return StoreError(f"{source.url}: got {length} bytes or more, want at most {target.most}; correct the source or the model's size")


def _refuse_full_disk(error: Exception, target: Target) -> None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        target.partial.unlink(missing_ok=True)
        free = shutil.disk_usage(target.path.parent).free
        raise StoreError(f"{target.path.parent.parent}: got {error.strerror} with {free} bytes free, want room for {target.path.name}; "
                         "enlarge storage.shared.size") from None  # fmt: skip
