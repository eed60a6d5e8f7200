"""What a replica's store still holds and no longer shows: manifests in `.retired`, each under its own digest, and the blobs that they name.

The bytes stay for a while, since a model may come back, and go when the time is over, or earlier, least recently used first, when the
volume fills beyond its high watermark. What a server has loaded or opened stays. A manifest that is damaged names nothing, and goes.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from model_sync.server import is_open, loaded_models
from model_sync.store import (
    Blob,
    StoreError,
    blobs,
    drop,
    exclusive,
    file_digest,
    manifests,
    room,
    sound_blobs,
    used,
    write_file,
)

HIGH, LOW = 0.9, 0.8
"""Watermarks: parts of the volume."""


@dataclass(frozen=True)
class Retired:
    store: Path
    capacity: int | None
    server: str
    """The Ollama of this pod."""

    @property
    def _directory(self) -> Path:
        path = self.store / ".retired"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def manifest(self, digest: str) -> bytes | None:
        """The manifest with this digest (with `sha256:`); None when it is not here, or damaged."""
        path = self._directory / digest.partition(":")[2]
        try:
            content = path.read_bytes()
        except OSError:
            return None
        return content if file_digest(content) == digest else None

    def keep(self, path: Path) -> None:
        """The manifest at `path`, for later; nothing of it when it is damaged."""
        try:
            content = path.read_bytes()
            blobs(content, path)
        except (StoreError, OSError) as error:
            print(f"warning: {error}; dropping it", flush=True)
            return
        write_file(self.store, self._directory / file_digest(content).partition(":")[2], content)

    def forget(self, digest: str) -> None:
        """It is shown again."""
        drop(self._directory / digest.partition(":")[2])

    def _manifests(self) -> list[Path]:
        """Those that are sound; the others are removed."""
        found: list[Path] = []
        for path in sorted(self._directory.iterdir()):
            if self.manifest(f"sha256:{path.name}") is None:
                drop(path)
                print(f"warning: {path}: damaged, removed", flush=True)
            else:
                found.append(path)
        return found

    def make_room(self, needed: int, name: str) -> None:
        """Reserve for model `name` first: a copy starts only when all of it fits. Raises StoreError."""
        if self._fill(needed) > HIGH or needed > room(self.store, self.capacity):
            for retired in self._by_last_use():
                if self._fill(needed) <= LOW and needed <= room(self.store, self.capacity):
                    break
                self._evict(retired)
        free = room(self.store, self.capacity)
        if needed > free:
            raise StoreError(f"{self.store}: got {free} bytes free, want {needed} for {name}; enlarge storage.hot.size")

    def _fill(self, needed: int = 0) -> float:
        filled = used(self.store) + needed
        return filled / (self.capacity or filled + max(room(self.store, None) - needed, 0) or 1)

    def evict(self, keep_s: float) -> bool:
        """Free what was here for `keep_s`, and what the high watermark asks for. Returns whether something is left to free later."""
        if not any(self._directory.iterdir()):
            return False
        with exclusive(self.store):
            over = self._fill() > HIGH
            for retired in self._by_last_use():
                if time.time() - retired.stat().st_mtime >= keep_s or (over and self._fill() > LOW):
                    self._evict(retired)
        return any(self._directory.iterdir())

    def _by_last_use(self) -> list[Path]:
        """Retired manifests that nothing uses, the one that was used least recently first."""
        loaded = loaded_models(self.server)
        idle: list[Path] = []
        for path in sorted(self._manifests(), key=lambda each: each.stat().st_mtime):
            files = [self.store / "blobs" / blob.file_name for blob in self._own_blobs(path)]
            if loaded is None or path.name in loaded or any(is_open(file) for file in files):
                os.utime(path)
            else:
                idle.append(path)
        return idle

    def _own_blobs(self, retired: Path) -> list[Blob]:
        """Blobs that no other model of this store needs."""
        others = [*manifests(self.store), *(path for path in self._manifests() if path != retired)]
        shared = {blob.digest for path in others for blob in sound_blobs(self.store, path)}
        return [blob for blob in sound_blobs(self.store, retired) if blob.digest not in shared]

    def _evict(self, retired: Path) -> None:
        own = self._own_blobs(retired)
        retired.unlink()
        for blob in own:
            drop(self.store / "blobs" / blob.file_name)
        print(f"evicted {retired.name[:12]}: {sum(blob.size for blob in own)} bytes", flush=True)

    def sweep(self) -> None:
        """Blobs that no manifest names: an interrupted copy, or another version of this program, left them."""
        named = {blob.file_name for path in [*manifests(self.store), *self._manifests()] for blob in sound_blobs(self.store, path)}
        for path in (self.store / "blobs").iterdir():
            if path.name not in named and not (path.is_file() and is_open(path)):
                drop(path)
