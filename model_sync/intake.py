"""Blobs on their way into the shared store: room is asked for first, what is there already is not fetched again."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from model_sync.access import Access
from model_sync.fetch import Pace, Target, fetch
from model_sync.files import File, git_name
from model_sync.patience import ATTEMPTS
from model_sync.source import Source, document
from model_sync.store import Blob, StoreError, is_present, manifests, room, sha256, sound_blobs, write_blob

SMALL_BYTES = 64 << 20
"""What everything beside the weights may have together; blobs up to it are hashed again in each run."""
_GIT_BYTES = 16 << 20
"""The most that a file has that a hub keeps in git itself; huggingface.co takes 10 MB."""


@dataclass
class Intake:
    """Into one store."""

    store: Path
    capacity: int | None
    pace: Pace
    verify: bool
    attempts: int = ATTEMPTS
    access: Access = field(default_factory=Access)

    def path(self, digest: str) -> Path:
        """Where a blob lies."""
        return self.store / "blobs" / digest.replace(":", "-")

    def absent(self, wanted: Iterable[Blob]) -> list[Blob]:
        """Those that have to be fetched."""
        return [blob for blob in wanted if not is_present(self.store, blob, verify=self.verify or blob.size <= SMALL_BYTES)]

    def is_whole(self, digest: str) -> bool:
        """For a blob whose size the source does not say: it is in the manifests that name it; one that none names yet is hashed."""
        path = self.path(digest)
        if not path.is_file():
            return False
        sizes = {blob.size for manifest in manifests(self.store) for blob in sound_blobs(self.store, manifest) if blob.digest == digest}
        return (path.stat().st_size in sizes and not self.verify) or sha256(path) == digest

    def reserve(self, absent: Iterable[Blob], name: str) -> None:
        """Raises StoreError where they do not all fit."""
        absent = list(absent)
        partials = [self.path(blob.digest).with_name(f".{blob.file_name}.partial") for blob in absent]
        needed = sum(blob.size for blob in absent) - sum(path.stat().st_size for path in partials if path.is_file())
        free = room(self.store, self.capacity)
        if needed > free:
            raise StoreError(f"{self.store}: got {free} bytes free, want {needed} for {name}; enlarge storage.shared.size")

    def fetch(self, source: Source, digest: str, size: int | None, limit: int) -> None:
        """Raises StoreError or SourceError."""
        fetch(source, Target(self.path(digest), digest, size, limit, lambda: room(self.store, self.capacity)), self.pace, self.attempts)

    def take(self, file: File, limit: int, before: Blob | None = None) -> Blob:
        """Have a file in the store; `before` is what an earlier version of the model has at its path. Raises StoreError or SourceError."""
        if not file.digest:
            return self._take_small(file, before)
        if file.size is None:
            if not self.is_whole(file.digest):
                self.fetch(file.source, file.digest, None, limit)
        elif self.absent([Blob(file.digest, file.size)]):
            self.fetch(file.source, file.digest, file.size, file.size)
        return Blob(file.digest, self.path(file.digest).stat().st_size)

    def _take_small(self, file: File, before: Blob | None) -> Blob:
        """One that only git's name is known of."""
        if before is not None and before.size == file.size and self._is(file.git, before):
            return before
        if file.size is None or file.size > _GIT_BYTES:
            got = f"{file.source.url}: got {file.size} bytes without their SHA-256"
            raise StoreError(f"{got}, want at most {_GIT_BYTES}; ask who runs the hub")
        content = document(file.source, self.attempts, file.size)
        if git_name(content) != file.git:
            raise StoreError(f"{file.source.url}: got content {git_name(content)}, want {file.git} in git; do not use it")
        return write_blob(self.store, content)

    def _is(self, git: str, blob: Blob) -> bool:
        return is_present(self.store, blob, verify=True) and git_name(self.path(blob.digest).read_bytes()) == git
