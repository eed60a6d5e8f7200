"""SHA-256 beside the reading and writing of what it is counted of: it takes as long as both together, and holds no lock of Python's."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

from model_sync.store import CHUNK_BYTES

_BESIDE = ThreadPoolExecutor(1, "sha256")
"""One thread for all: a process has one blob on its way at a time."""
_BLOCKS = 1024
"""In a chunk at most: a hostile source sends single bytes, each of which takes forty times as much here."""


class Digest:
    """Of the bytes that have passed so far."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._gathered: list[bytes] = []
        self._bytes = 0
        self._counted: Future[None] | None = None

    def update(self, block: bytes) -> None:
        """Two chunks are held at most, however fast blocks come and however small they are."""
        self._gathered.append(block)
        self._bytes += len(block)
        if self._bytes >= CHUNK_BYTES or len(self._gathered) >= _BLOCKS:
            self._wait()
            self._counted = _BESIDE.submit(self._count, self._gathered)
            self._gathered, self._bytes = [], 0

    def __str__(self) -> str:
        """`sha256:` and 64 hex digits."""
        self._wait()
        self._count(self._gathered)
        self._gathered, self._bytes = [], 0
        return f"sha256:{self._hash.hexdigest()}"

    def _count(self, blocks: list[bytes]) -> None:
        for block in blocks:
            self._hash.update(block)

    def _wait(self) -> None:
        if self._counted is not None:
            self._counted.result()
            self._counted = None
