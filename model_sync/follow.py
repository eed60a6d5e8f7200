"""The reader beside each server: keeps the node-local store equal to what the catalog says this replica holds.

What the catalog no longer names is no longer shown at once; `retired.py` says what becomes of its bytes.

What an earlier life of the pod left here is hashed once before it is served: disks damage files without changing their size or time.
Whatever is damaged here is dropped and copied again, and nothing of that concerns another model.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_sync import catalog
from model_sync.catalog import Catalog, Entry
from model_sync.copies import copy
from model_sync.retired import Retired
from model_sync.server import unload, withheld
from model_sync.store import (
    REPAIR,
    Blob,
    StoreError,
    blobs,
    display_name,
    drop,
    exclusive,
    file_digest,
    is_present,
    manifest_path,
    manifests,
    remove_manifest,
    sha256,
    write_file,
)


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
    agent: str = "http://127.0.0.1:9466"
    """The agent of this pod."""
    only: str = ""
    """The one model that this store is for, whoever of the fleet has it: a model server's."""
    _withheld: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Model to the digest that ended the server while it was loaded, and the reason, as the agent said last."""
    _sound: set[str] = field(default_factory=set)
    """Digests of the blobs that this process has hashed, here or on their way here."""
    _unsettled: list[Blob] = field(default_factory=list)
    """Those that may not be on the disk yet."""

    @property
    def retired(self) -> Retired:
        return Retired(self.store, self.capacity, self.server)

    def ask_agent(self) -> bool:
        """Whether the agent now withholds other models than before. One that does not answer has changed nothing."""
        before, found = self._withheld, withheld(self.agent)
        self._withheld = before if found is None else found
        return self._withheld != before

    def hydrate(self) -> list[str]:
        """One pass. Returns the problems: their models are left out, or stay as they are here. Raises StoreError without a catalog."""
        published, problems = self._published()
        held = [entry for entry in published.models if self._holds(entry, published.fleet)]
        if self.only and not held:
            known = ", ".join(entry.name for entry in published.models) or "none"
            raise StoreError(published.problems.get(self.only) or f"{self.only}: got {known} in the catalog, want it; run the writer")
        # Whoever asked for such a model would end the server for all others.
        ends = {entry.name: self._withheld[entry.name][1] for entry in held if self._ends_server(entry)}
        problems |= ends
        held = [entry for entry in held if entry.name not in ends]
        with exclusive(self.store):
            for left in (self.store / "blobs").glob(".*.partial"):
                left.unlink()
            before = self._served()
            # Where our own catalog is damaged, the manifests still tell what is here.
            # A store for one model has no room for two versions, and nobody reads it yet.
            old = {} if self.only else {entry.name: entry for entry in before.models}
            here = {entry.name: served for entry in held if (served := self._whole(old.get(entry.name, entry)))}
            self._publish(published, held, here, problems)
            self._retire({manifest_path(name) for name in here})
            for entry in held:
                if here.get(entry.name) == entry:
                    continue
                try:
                    self._bring(entry)
                except StoreError as error:
                    problems[entry.name] = f"{entry.name}: {error}"
                except OSError as error:
                    where = error.filename or self.shared
                    problems[entry.name] = f"{entry.name}: got {error.strerror or error} from {where}, want to copy it; check the volumes"
                else:
                    here[entry.name] = entry
                self._publish(published, held, here, problems)
            self.retired.sweep()
        return list(problems.values())

    def _holds(self, entry: Entry, fleet: int) -> bool:
        return entry.name == self.only if self.only else catalog.is_held_by(entry.name, entry.replicas, fleet, self.ordinal)

    def _ends_server(self, entry: Entry) -> bool:
        return self._withheld.get(entry.name, ("", ""))[0] == entry.digest.removeprefix("sha256:")

    def evict(self) -> bool:
        """Free what time or the high watermark asks for. Returns whether something is left to free later."""
        return self.retired.evict(self.keep_s)

    def _published(self) -> tuple[Catalog, dict[str, str]]:
        """The catalog to follow, and what is wrong with it: without the shared one, what was here before is checked and served."""
        try:
            found = catalog.read(self.shared)
            reason = f"{self.shared / catalog.FILE}: got none, want one; wait for the writer, or run it"
        except StoreError as error:
            found, reason = None, str(error)
        except OSError as error:
            found, reason = None, f"{self.shared / catalog.FILE}: got {error.strerror}, want to read it; check the volume"
        if found is not None:
            return found, {}
        own = self._served()
        if not own.models:
            raise StoreError(reason)
        return own, {catalog.FILE: reason}

    def _served(self) -> Catalog:
        try:
            return catalog.read(self.store) or Catalog()
        except (StoreError, OSError) as error:
            print(f"warning: {error}", flush=True)
            return Catalog()

    def _publish(self, published: Catalog, held: Sequence[Entry], here: Mapping[str, Entry], problems: Mapping[str, str]) -> None:
        """Say what is here, in the order of the configuration, and what is not."""
        lines = {name: line if line.startswith("models.") or name == catalog.FILE else f"models.{line}" for name, line in problems.items()}
        models = tuple(here[entry.name] for entry in held if entry.name in here)
        catalog.write(self.store, Catalog(published.fleet, models, {**published.problems, **lines}))

    def _whole(self, entry: Entry) -> Entry | None:
        """The entry if this store really has that model. What of it is damaged is gone afterwards."""
        path = self.store / manifest_path(entry.name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            print(f"warning: {entry.name}: {path}: got {error.strerror}, want a manifest; copying it again", flush=True)
            drop(path)
            return None
        if file_digest(content) != entry.digest:
            return None
        return entry if all(self._has(blob, entry) for blob in blobs(content, path)) else None

    def _has(self, blob: Blob, entry: Entry) -> bool:
        """Whether the blob is here. One that is damaged is dropped."""
        path, started = self.store / "blobs" / blob.file_name, time.monotonic()
        try:
            if not is_present(self.store, blob):
                return False
            if blob.digest in self._sound:
                return True
            found = sha256(path)
        except OSError as error:
            found = str(error.strerror)
        if found != blob.digest:
            print(f"warning: {entry.name}: {path}: got content {found}, want {blob.digest}; it is damaged, copying it again", flush=True)
            unload(self.server, entry.name)
            drop(path)
            return False
        self._sound.add(blob.digest)
        print(f"{entry.name}: {blob.size} bytes verified in {time.monotonic() - started:.1f} s, {blob.digest}", flush=True)
        return True

    def _bring(self, entry: Entry) -> None:
        """Copy one model, hashing the bytes that are written. Raises StoreError."""
        path = manifest_path(entry.name)
        content = self.retired.manifest(entry.digest) or self._manifest(entry, path)
        wanted = [blob for blob in dict.fromkeys(blobs(content, path)) if not self._has(blob, entry)]
        self.retired.make_room(sum(blob.size for blob in wanted), entry.name)
        for blob in wanted:
            copy(self.shared / "blobs" / blob.file_name, self.store / "blobs" / blob.file_name, blob)
            self._sound.add(blob.digest)
            self._unsettled.append(blob)
        if (self.store / path).is_file() and (self.store / path).read_bytes() != content:
            unload(self.server, entry.name)
            self.retired.keep(self.store / path)
        write_file(self.store, self.store / path, content)
        self.retired.forget(entry.digest)
        print(f"{entry.name}: {sum(blob.size for blob in wanted)} bytes copied, {entry.digest}", flush=True)

    def settle(self) -> bool:
        """Wait until the disk has what was copied. Returns whether it has; what it could not write is dropped, and copied again.

        A server may start before: whatever a node loses by a crash, the next life of the pod finds when it hashes all that is here.
        """
        unsettled, self._unsettled = self._unsettled, []
        found = [self._settle(self.store / "blobs" / blob.file_name, blob) for blob in unsettled]
        return all(found)

    def _settle(self, path: Path, blob: Blob) -> bool:
        try:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        except FileNotFoundError:
            pass
        except OSError as error:
            print(f"warning: {path}: got {error.strerror}, want it on the disk; copying it again", flush=True)
            self._sound.discard(blob.digest)
            drop(path)
            return False
        return True

    def _manifest(self, entry: Entry, path: Path) -> bytes:
        source = self.shared / path
        if not source.is_file():
            raise StoreError(f"{source}: got no manifest, want that of {entry.name}; publish the model again")
        content = source.read_bytes()
        if file_digest(content) != entry.digest:
            raise StoreError(f"{source}: got manifest {file_digest(content)}, want {entry.digest}; it is being replaced, or {REPAIR}")
        return content

    def _retire(self, wanted: set[Path]) -> None:
        """Hide every model that is not wanted; keep its bytes for now."""
        for path in manifests(self.store):
            if path not in wanted:
                unload(self.server, display_name(path))
                self.retired.keep(self.store / path)
                remove_manifest(self.store, path)
                print(f"{display_name(path)}: no longer served", flush=True)
