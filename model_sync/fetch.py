"""One blob from a file or an HTTP server into a store: resumed, slowed down when asked, hashed on the way, named last."""

import errno
import hashlib
import os
import shutil
import time
import urllib.error
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from model_sync.access import Access
from model_sync.store import CHUNK_BYTES, StoreError, flush_directory

ATTEMPTS = 8
"""Without a new byte between them: about a minute."""
_BACKOFF_S = 0.5
"""Before the second attempt; doubles with each."""
_LONGEST_BACKOFF_S = 30
_BLOCK_BYTES = 64 << 10
_DOCUMENT_BYTES = 4 << 20
_PASSING_STATUSES = (408, 425, 429)


class SourceError(Exception):
    """A source that does not deliver now; another run may succeed."""


@dataclass(frozen=True)
class Stream:
    file: BinaryIO
    start: int
    """Offset of its first byte: 0 when the server ignored the range."""
    total: int | None
    """Bytes of the whole content, if the source says so."""


@dataclass(frozen=True)
class Source:
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    access: Access = field(default_factory=Access)
    repository: str = ""
    """Of a registry, for its tokens."""

    def open(self, offset: int = 0) -> Stream:
        """The content from `offset` on. Raises StoreError when another attempt cannot help, OSError or HTTPException when it may."""
        if self.url.startswith("file://"):
            path = Path(unquote(urlsplit(self.url).path))
            try:
                file = path.open("rb")
            except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
                raise StoreError(f"{self.url}: got {error.strerror}, want a file that the writer can read; correct the source") from None
            total = os.fstat(file.fileno()).st_size
            start = min(offset, total)
            file.seek(start)
            return Stream(file, start, total)
        return self._request(offset)

    def _request(self, offset: int) -> Stream:
        headers = self.headers | ({"Range": f"bytes={offset}-"} if offset else {})
        try:
            response = self.access.open(self.url, headers, self.repository)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # The rest that we ask for is not there: the part that we have is of something else.
                return self._request(0)
            if error.code < 500 and error.code not in _PASSING_STATUSES:
                raise StoreError(f"{self.url}: got status {error.code}, want the content; correct the source") from None
            raise
        if response.status == 206:
            span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            start = span.partition("-")[0]
            if not start.isdecimal():
                response.close()
                return self._request(0)
            return Stream(response, int(start), int(total) if total.isdecimal() else None)
        length = response.headers.get("Content-Length")
        return Stream(response, 0, int(length) if length and length.isdecimal() else None)


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


def fetch(source: Source, target: Target, pace: Pace, attempts: int = ATTEMPTS) -> None:
    """Raises StoreError when the source is refused, SourceError when it breaks off too often; then the next run goes on from there."""
    resumed = target.partial.exists()
    failures, known = 0, _length(target.partial)
    while True:
        try:
            found = _attempt(source, target, pace)
        except (OSError, HTTPException, SourceError) as error:
            _refuse_full_disk(error, target)
            length = _length(target.partial)
            failures, known = (1, length) if length > known else (failures + 1, known)
            if failures >= attempts:
                raise SourceError(f"{source.url}: got {_reason(error)} after {length} bytes, want {target.size or 'all of it'}; "
                                        "check the source, the next run goes on from there") from None  # fmt: skip
            pause(failures)
            continue
        if found == target.digest:
            target.partial.chmod(0o644)
            target.partial.replace(target.path)
            flush_directory(target.path.parent)
            return
        target.partial.unlink()
        if not resumed:
            raise StoreError(f"{source.url}: got content {found}, want {target.digest}; do not use it, or correct models.<name>.digest")
        # What an earlier run left may be the damaged part.
        resumed, known = False, 0


def document(source: Source, attempts: int = ATTEMPTS) -> bytes:
    """A small document, such as a registry's manifest. Raises StoreError or SourceError."""
    reason = "no attempt"
    for failures in range(1, attempts + 1):
        try:
            with closing(source.open().file) as file:
                return file.read(_DOCUMENT_BYTES)
        except (OSError, HTTPException) as error:
            reason = _reason(error)
        if failures < attempts:
            pause(failures)
    raise SourceError(f"{source.url}: got {reason}, want the document; check the source")


def pause(failures: int) -> None:
    """Before the next attempt."""
    time.sleep(min(_BACKOFF_S * 2 ** (failures - 1), _LONGEST_BACKOFF_S))


def _attempt(source: Source, target: Target, pace: Pace) -> str:
    """One connection, up to the end of the content. Returns the digest of the whole file."""
    digest, offset = _prefix(target)
    if f"sha256:{digest.hexdigest()}" == target.digest and offset:
        return target.digest
    stream = source.open(offset)
    with closing(stream.file), target.partial.open("r+b" if offset else "wb") as writer:
        if stream.start not in (0, offset):
            raise StoreError(f"{source.url}: got a range from {stream.start}, want one from {offset}; the server is broken, use another")
        if stream.start != offset:
            digest, offset = hashlib.sha256(), 0
        writer.seek(offset)
        writer.truncate()
        expected = _expected(source, stream, target)
        if expected is not None and expected - offset > target.room():
            free = f"{target.path.parent.parent}: got {target.room()} bytes free"
            raise StoreError(f"{free}, want {expected - offset} for {source.url}; enlarge storage.shared.size")
        while block := stream.file.read(_BLOCK_BYTES):
            offset += len(block)
            if offset > (target.limit if expected is None else expected):
                raise _too_long(source, target, offset)
            writer.write(block)
            digest.update(block)
            pace.passed(len(block))
        writer.flush()
        os.fsync(writer.fileno())
    if expected is not None and offset < expected:
        raise SourceError("the end of the content")
    return f"sha256:{digest.hexdigest()}"


def _prefix(target: Target) -> tuple["hashlib._Hash", int]:
    """What an earlier attempt left: its hash and length."""
    digest, length = hashlib.sha256(), 0
    if target.partial.exists():
        with target.partial.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                length += len(chunk)
    if length > (target.limit if target.size is None else target.size):
        target.partial.unlink()
        return hashlib.sha256(), 0
    return digest, length


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
    limit = target.limit if target.size is None else target.size
    return StoreError(f"{source.url}: got {length} bytes or more, want at most {limit}; correct the source or the model's size")


def _refuse_full_disk(error: Exception, target: Target) -> None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        target.partial.unlink(missing_ok=True)
        free = shutil.disk_usage(target.path.parent).free
        raise StoreError(f"{target.path.parent.parent}: got {error.strerror} with {free} bytes free, want room for {target.path.name}; "
                         "enlarge storage.shared.size") from None  # fmt: skip


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    return str(error) or type(error).__name__
