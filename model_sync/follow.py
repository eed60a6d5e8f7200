"""The reader beside each server: keeps the node-local store equal to what the catalog says this replica holds.

What the catalog no longer names is no longer shown at once; its bytes stay for a while, in `.retired`, and go when the time is
over, or earlier, least recently used first, when the volume fills beyond its high watermark. What a server has loaded or opened stays.

What an earlier life of the pod left here is hashed once before it is served: disks damage files without changing their size or time.
"""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_sync import catalog
from model_sync.catalog import Catalog, Entry
from model_sync.server import is_open, loaded_models, unload
from model_sync.store import (
    CHUNK_BYTES,
    Blob,
    StoreError,
    blobs,
    display_name,
    exclusive,
    file_digest,
    flush_directory,
    is_present,
    manifest_path,
    manifests,
    remove_manifest,
    room,
    sha256,
    used,
    write_file,
)

HIGH, LOW = 0.9, 0.8
"""Watermarks: parts of the volume."""


@dataclass
class Replica:
    shared: Path
    store: Path
    ordinal: int
    capacity: int | None
    keep_s: float
    """How long the bytes of a model stay that the catalog no longer names."""
    server: str = "http://127.0.0.1:11434"
    """The Ollama of this pod."""
    _sound: set[str] = field(default_factory=set)
    """Digests of the blobs that this process has hashed, here or on their way here."""

    def hydrate(self) -> list[str]:
        """One pass. Returns the problems: their models are left out, or stay as they are here. Raises StoreError without a catalog."""
        published = catalog.read(self.shared)
        if published is None:
            raise StoreError(f"{self.shared / catalog.FILE}: got none, want one; wait for the writer, or run it")
        held = [entry for entry in published.models if catalog.is_held_by(entry.name, entry.replicas, published.fleet, self.ordinal)]
        problems: list[str] = []
        with exclusive(self.store):
            for left in (self.store / "blobs").glob(".*.partial"):
                left.unlink()
            before = self._served()
            here = {entry.name: served for entry in held if (served := self._whole(before.entry(entry.name)))}
            self._publish(published, held, here)
            self._retire({manifest_path(name) for name in here})
            for entry in held:
                if here.get(entry.name) == entry:
                    continue
                try:
                    self._bring(entry)
                except StoreError as error:
                    problems.append(f"{entry.name}: {error}")
                except OSError as error:
                    where = error.filename or self.shared
                    problems.append(f"{entry.name}: got {error.strerror or error} from {where}, want to copy it; check the volumes")
                else:
                    here[entry.name] = entry
                    self._publish(published, held, here)
            self._sweep()
        return problems

    def _served(self) -> Catalog:
        try:
            return catalog.read(self.store) or Catalog()
        except StoreError as error:
            print(f"warning: {error}", flush=True)
            return Catalog()

    def _publish(self, published: Catalog, held: Sequence[Entry], here: Mapping[str, Entry]) -> None:
        """Say what is here, in the order of the configuration."""
        catalog.write(self.store, Catalog(published.fleet, tuple(here[entry.name] for entry in held if entry.name in here)))

    def _whole(self, entry: Entry | None) -> Entry | None:
        """The entry if this store really has that model."""
        if entry is None:
            return None
        path = self.store / manifest_path(entry.name)
        if not path.is_file() or file_digest(content := path.read_bytes()) != entry.digest:
            return None
        return entry if all(self._has(blob, entry) for blob in blobs(content, path)) else None

    def _has(self, blob: Blob, entry: Entry) -> bool:
        """Whether the blob is here. One that is damaged is dropped."""
        if not is_present(self.store, blob):
            return False
        if blob.digest in self._sound:
            return True
        path, started = self.store / "blobs" / blob.file_name, time.monotonic()
        found = sha256(path)
        if found != blob.digest:
            print(f"warning: {entry.name}: {path}: got content {found}, want {blob.digest}; it is damaged, copying it again", flush=True)
            unload(self.server, entry.name)
            path.unlink()
            return False
        self._sound.add(blob.digest)
        print(f"{entry.name}: {blob.size} bytes verified in {time.monotonic() - started:.1f} s, {blob.digest}", flush=True)
        return True

    def _bring(self, entry: Entry) -> None:
        """Copy one model, hashing the bytes that are written. Raises StoreError."""
        path = manifest_path(entry.name)
        content = self._manifest(entry, path)
        wanted = [blob for blob in dict.fromkeys(blobs(content, path)) if not self._has(blob, entry)]
        self._make_room(sum(blob.size for blob in wanted), entry)
        for blob in wanted:
            _copy(self.shared / "blobs" / blob.file_name, self.store / "blobs" / blob.file_name, blob)
            self._sound.add(blob.digest)
        if (self.store / path).is_file() and (self.store / path).read_bytes() != content:
            unload(self.server, entry.name)
            self._keep(self.store / path)
        write_file(self.store, self.store / path, content)
        (self._retired / entry.digest.partition(":")[2]).unlink(missing_ok=True)
        print(f"{entry.name}: {sum(blob.size for blob in wanted)} bytes copied, {entry.digest}", flush=True)

    def _manifest(self, entry: Entry, path: Path) -> bytes:
        retired = self._retired / entry.digest.partition(":")[2]
        source = retired if retired.is_file() else self.shared / path
        if not source.is_file():
            raise StoreError(f"{source}: got no manifest, want that of {entry.name}; publish the model again")
        content = source.read_bytes()
        if file_digest(content) != entry.digest:
            raise StoreError(
                f"{source}: got manifest {file_digest(content)}, want {entry.digest}; it is being replaced, or publish it again"
            )
        return content

    # Eviction

    @property
    def _retired(self) -> Path:
        path = self.store / ".retired"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _retire(self, wanted: set[Path]) -> None:
        """Hide every model that is not wanted; keep its bytes for now."""
        for path in manifests(self.store):
            if path not in wanted:
                unload(self.server, display_name(path))
                self._keep(self.store / path)
                remove_manifest(self.store, path)
                print(f"{display_name(path)}: no longer served", flush=True)

    def _keep(self, path: Path) -> None:
        content = path.read_bytes()
        write_file(self.store, self._retired / file_digest(content).partition(":")[2], content)

    def _make_room(self, needed: int, entry: Entry) -> None:
        """Reserve first: a copy starts only when all of it fits."""
        if self._fill(needed) > HIGH or needed > room(self.store, self.capacity):
            for retired in self._by_last_use():
                if self._fill(needed) <= LOW and needed <= room(self.store, self.capacity):
                    break
                self._evict(retired)
        free = room(self.store, self.capacity)
        if needed > free:
            raise StoreError(f"{self.store}: got {free} bytes free, want {needed} for {entry.name}; enlarge storage.hot.size")

    def _fill(self, needed: int = 0) -> float:
        filled = used(self.store) + needed
        return filled / (self.capacity or filled + max(room(self.store, None) - needed, 0) or 1)

    def evict(self) -> bool:
        """Free what time or the high watermark asks for. Returns whether something is left to free later."""
        if not any(self._retired.iterdir()):
            return False
        with exclusive(self.store):
            over = self._fill() > HIGH
            for retired in self._by_last_use():
                if time.time() - retired.stat().st_mtime >= self.keep_s or (over and self._fill() > LOW):
                    self._evict(retired)
        return any(self._retired.iterdir())

    def _by_last_use(self) -> list[Path]:
        """Retired manifests that nothing uses, the one that was used least recently first."""
        loaded = loaded_models(self.server)
        idle: list[Path] = []
        for path in sorted(self._retired.iterdir(), key=lambda each: each.stat().st_mtime):
            files = [self.store / "blobs" / blob.file_name for blob in self._own_blobs(path)]
            if loaded is None or path.name in loaded or any(is_open(file) for file in files):
                os.utime(path)
            else:
                idle.append(path)
        return idle

    def _own_blobs(self, retired: Path) -> list[Blob]:
        """Blobs that no other model of this store needs."""
        others = [self.store / path for path in manifests(self.store)] + [path for path in self._retired.iterdir() if path != retired]
        shared = {blob.digest for path in others for blob in blobs(path.read_bytes(), path)}
        return [blob for blob in blobs(retired.read_bytes(), retired) if blob.digest not in shared]

    def _evict(self, retired: Path) -> None:
        own = self._own_blobs(retired)
        retired.unlink()
        for blob in own:
            (self.store / "blobs" / blob.file_name).unlink(missing_ok=True)
        print(f"evicted {retired.name[:12]}: {sum(blob.size for blob in own)} bytes", flush=True)

    def _sweep(self) -> None:
        """Blobs that no manifest names: an interrupted copy, or another version of this program, left them."""
        every = [self.store / path for path in manifests(self.store)] + list(self._retired.iterdir())
        named = {blob.file_name for path in every for blob in blobs(path.read_bytes(), path)}
        for path in (self.store / "blobs").iterdir():
            if path.is_file() and path.name not in named and not is_open(path):
                path.unlink()


def _copy(source: Path, target: Path, blob: Blob) -> None:
    """Raises StoreError on damage; leaves nothing then."""
    fresh = target.with_name(f".{target.name}.partial")
    digest = hashlib.sha256()
    try:
        with source.open("rb") as reader, fresh.open("wb") as writer:
            if blob.size:
                os.posix_fallocate(writer.fileno(), 0, blob.size)
            while chunk := reader.read(CHUNK_BYTES):
                digest.update(chunk)
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        found = f"sha256:{digest.hexdigest()}"
        if found != blob.digest:
            raise StoreError(
                f"{source}: got content {found}, want {blob.digest}; it is damaged, set delivery.verify and deploy to repair it"
            )
        fresh.chmod(0o644)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    flush_directory(target.parent)
