"""One blob from the shared store into a server's own."""

import os
from pathlib import Path

from model_sync.digests import Digest
from model_sync.store import CHUNK_BYTES, REPAIR, Blob, StoreError, name_whole


def copy(source: Path, target: Path, blob: Blob) -> None:
    """Raises StoreError on damage; leaves nothing then. The disk may not have all of it yet."""
    fresh = target.with_name(f".{target.name}.partial")
    digest = Digest()
    try:
        with source.open("rb") as reader, fresh.open("wb") as writer:
            if blob.size:
                os.posix_fallocate(writer.fileno(), 0, blob.size)
            left = blob.size
            while chunk := reader.read(min(CHUNK_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise StoreError(f"{source}: got more than {blob.size} bytes, want those of {blob.digest}; {REPAIR}")
                digest.update(chunk)
                writer.write(chunk)
        found = str(digest)
        if found != blob.digest:
            raise StoreError(f"{source}: got content {found}, want {blob.digest}; {REPAIR}")
        name_whole(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)
