"""The layout of an Ollama model store: `manifests/<host>/<namespace>/<model>/<tag>` and `blobs/sha256-<hex>`.

Source: ollama/ollama v0.32.15, types/model/name.go and manifest/paths.go.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LAYERS = 1024
"""A tree of files has one for each; the largest models come in 200 files."""
_BLOB_BYTES = 1 << 50
CHUNK_BYTES = 1 << 20
MODEL_LAYER = "application/vnd.ollama.image.model"
PARAMS_LAYER = "application/vnd.ollama.image.params"
TEMPLATE_LAYER = "application/vnd.ollama.image.template"


REPAIR = "it is damaged, set delivery.verify and deploy to repair it"
"""What to do about the shared store."""


class StoreError(Exception):
    """Something in a store or a source is missing, damaged or malformed, and trying again does not help; the message says what does."""


@dataclass(frozen=True)
class Blob:
    digest: str
    """`sha256:` and 64 hex digits."""
    size: int

    @classmethod
    def of(cls, content: bytes) -> "Blob":
        return cls(file_digest(content), len(content))

    @property
    def file_name(self) -> str:
        return self.digest.replace(":", "-")


def manifest_path(name: str) -> Path:
    """Where the manifest of `[host/][namespace/]model:tag` lies below the store. Raises StoreError on a malformed name."""
    model, _, tag = name.rpartition(":")
    parts = model.split("/") if model else []
    if not tag or not 1 <= len(parts) <= 3 or any(not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", part) for part in (*parts, tag)):
        raise StoreError(f"model name: got {name!r}, want [host/][namespace/]model:tag; write the tag too")
    if len(parts) < 3:
        parts = [DEFAULT_HOST, *([DEFAULT_NAMESPACE] if len(parts) == 1 else []), *parts]
    return Path("manifests", *parts, tag)


def display_name(path: Path) -> str:
    """The short name of a manifest path relative to the store."""
    host, namespace, model, tag = path.parts[-4:]
    if host != DEFAULT_HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    prefix = "" if namespace == DEFAULT_NAMESPACE else f"{namespace}/"
    return f"{prefix}{model}:{tag}"


def manifests(store: Path) -> list[Path]:
    """Relative paths of all manifests, sorted."""
    return sorted(path.relative_to(store) for path in store.glob("manifests/*/*/*/*") if path.is_file() and not path.is_symlink())


def blobs(manifest: bytes, path: Path) -> list[Blob]:
    """Every blob that the manifest names. Raises StoreError when it is not a manifest, whatever else it is."""
    try:
        document: dict[str, Any] = json.loads(manifest)
        layers: list[Any] = document["layers"]
        if len(layers) > _LAYERS or not all(isinstance(layer["mediaType"], str) for layer in layers):
            raise ValueError(f"{len(layers)} layers")
        return [_blob(entry["digest"], entry["size"]) for entry in [document["config"], *layers]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: got no manifest ({error}), want a docker schema 2 manifest; publish the model again") from None


def _blob(digest: Any, size: Any) -> Blob:
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ValueError(f"digest {str(digest)[:80]!r}")
    if type(size) is not int or not 0 <= size <= _BLOB_BYTES:
        raise ValueError(f"size {str(size)[:40]}")
    return Blob(digest, size)


def sound_blobs(store: Path, manifest: Path) -> list[Blob]:
    """Those of a manifest that lies in a store; none when it is damaged or gone."""
    try:
        return blobs((store / manifest).read_bytes(), manifest)
    except (StoreError, OSError):
        return []


def drop(path: Path) -> None:
    """Remove what is damaged, whatever it has become."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def file_digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextmanager
def exclusive(store: Path) -> Iterator[None]:
    """One writer a store; the lock dies with its process. The directories that Ollama asks for are there afterwards."""
    for directory in (store / "blobs", store / "manifests"):
        directory.mkdir(parents=True, exist_ok=True)
    with (store / ".sync.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def flush_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(store: Path, target: Path, content: bytes) -> None:
    """Make `target` have this content, whole or not at all; readable for every user, as pods of another user read it too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # At the top: below manifests/*/*/*/* Ollama would read a half-written file, and below blobs/ it is taken for a blob.
    fresh = store / ".file.partial"
    with fresh.open("wb") as writer:
        writer.write(content)
        writer.flush()
        os.fsync(writer.fileno())
    name_whole(fresh, target)


def name_whole(fresh: Path, target: Path) -> None:
    """Give a finished file its name, in one step, whatever has that name now."""
    fresh.chmod(0o644)
    if target.is_dir():
        drop(target)
    fresh.replace(target)
    flush_directory(target.parent)


def write_blob(store: Path, content: bytes) -> Blob:
    """A small blob from memory."""
    blob = Blob.of(content)
    target = store / "blobs" / blob.file_name
    if not is_present(store, blob, verify=True):
        write_file(store, target, content)
    return blob


def is_present(store: Path, blob: Blob, *, verify: bool = False) -> bool:
    """Whether the blob is there in its full size. It got its name after it was hashed; `verify` hashes it again, for damage since."""
    path = store / "blobs" / blob.file_name
    try:
        return path.is_file() and path.stat().st_size == blob.size and (not verify or sha256(path) == blob.digest)
    except OSError:  # Gone, or a disk that cannot read it.
        return False


def take(path: Path, store: Path, *, link: bool = False) -> Blob:
    """Have a file as a blob; `link`: the file itself stays where it is. Raises OSError."""
    blob = Blob(sha256(path), path.stat().st_size)
    blobs = store / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    if not is_present(store, blob):
        fresh = blobs / f".{blob.file_name}.partial"
        if link:
            fresh.symlink_to(path.absolute())
        else:
            shutil.copyfile(path, fresh)
        fresh.replace(blobs / blob.file_name)
    return blob


def has_content(path: Path, content: bytes) -> bool:
    """Whether the file is there and can be read, and has this content."""
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def room(store: Path, capacity: int | None) -> int:
    """Bytes that may still be written: of the file system, and of `capacity` where the volume does not hold it to its size itself."""
    free = shutil.disk_usage(store).free
    return free if capacity is None else min(free, capacity - used(store))


def used(store: Path) -> int:
    """Bytes of all files in blobs/, also half-written ones."""
    return sum(path.stat().st_size for path in (store / "blobs").iterdir() if path.is_file())


def remove_manifest(store: Path, manifest: Path) -> None:
    """With the directories that are empty then: one of them would stop a pruning Ollama from starting."""
    path = store / manifest
    path.unlink(missing_ok=True)
    for parent in list(path.parents)[:3]:
        if any(parent.iterdir()):
            return
        parent.rmdir()
