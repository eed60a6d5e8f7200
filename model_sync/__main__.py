"""`python -m model_sync SOURCE DESTINATION`: make every model of one store available in another, verified.

Order matters, because readers look at the destination meanwhile: a blob appears under its name only after its bytes
were hashed on the way and flushed to disk; a manifest appears only after all of its blobs.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from model_sync.store import CHUNK_BYTES, Blob, StoreError, blobs, display_name, manifests, sha256


@contextmanager
def _exclusive(store: Path) -> Iterator[None]:
    """One writer a store; the lock dies with its process."""
    with (store / ".sync.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _flush_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy_blob(source: Path, target: Path, blob: Blob) -> None:
    """Copy with the hash taken from the bytes that were written. Raises StoreError on damage; leaves nothing then."""
    fresh = target.with_name(f".{blob.file_name}.partial")
    digest = hashlib.sha256()
    try:
        with source.open("rb") as reader, fresh.open("wb") as writer:
            while chunk := reader.read(CHUNK_BYTES):
                digest.update(chunk)
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        found = f"sha256:{digest.hexdigest()}"
        if found != blob.digest:
            raise StoreError(f"{source}: got content {found}, want {blob.digest}; the source is damaged, publish the model again")
        fresh.chmod(0o644)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    _flush_directory(target.parent)


def _is_present(target: Path, blob: Blob, *, verify: bool) -> bool:
    try:
        size = target.stat().st_size
    except FileNotFoundError:
        return False
    return size == blob.size and (not verify or sha256(target) == blob.digest)


def _copy_model(source: Path, destination: Path, manifest: Path, *, verify: bool) -> int:
    """Returns the bytes that were copied; 0 when the model was there. Raises StoreError."""
    content = (source / manifest).read_bytes()
    wanted = [
        blob
        for blob in dict.fromkeys(blobs(content, source / manifest))
        if not _is_present(destination / "blobs" / blob.file_name, blob, verify=verify)
    ]
    missing = next((blob for blob in wanted if not (source / "blobs" / blob.file_name).is_file()), None)
    if missing is not None:
        raise StoreError(f"{source / manifest}: got no blob {missing.file_name}, want it beside; publish the model again")
    needed, free = sum(blob.size for blob in wanted), shutil.disk_usage(destination).free
    if needed > free:
        raise StoreError(f"{destination}: got {free} bytes free, want {needed} for {display_name(manifest)}; enlarge the volume")
    for blob in wanted:
        _copy_blob(source / "blobs" / blob.file_name, destination / "blobs" / blob.file_name, blob)
    target = destination / manifest
    if not target.is_file() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Outside manifests/*/*/*/*, or Ollama would read a half-written one.
        fresh = destination / ".manifest.partial"
        with fresh.open("wb") as writer:
            writer.write(content)
            writer.flush()
            os.fsync(writer.fileno())
        fresh.chmod(0o644)
        fresh.replace(target)
        _flush_directory(target.parent)
    return needed


def sync(source: Path, destination: Path, *, verify: bool = False) -> list[str]:
    """Copy every model. Returns the problems; a damaged model is left out, the others are copied.

    `verify` hashes blobs that are there already, too; otherwise a blob of the right size is trusted, because it got its
    name only after it was verified.
    """
    if not (source / "manifests").is_dir():
        return [f"{source}: got no directory manifests, want a model store; check the source"]
    for directory in (destination / "blobs", destination / "manifests"):
        directory.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    with _exclusive(destination):
        for manifest in manifests(source):
            name = display_name(manifest)
            try:
                copied = _copy_model(source, destination, manifest, verify=verify)
            except StoreError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{destination}: got {error.strerror} for {name}, want to write there; check the volume")
            else:
                print(f"{name}: {f'{copied} bytes copied' if copied else 'present'}", flush=True)
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model_sync", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--verify", action="store_true", help="hash blobs that are already there, too")
    options = parser.parse_args(arguments)
    problems = sync(options.source, options.destination, verify=options.verify)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
