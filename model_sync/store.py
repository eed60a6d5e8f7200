"""The layout of an Ollama model store: `manifests/<host>/<namespace>/<model>/<tag>` and `blobs/sha256-<hex>`.

Source: ollama/ollama v0.32.15, types/model/name.go and manifest/paths.go.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20


class StoreError(Exception):
    """Something in a store is missing, damaged or malformed; the message says what to do."""


@dataclass(frozen=True)
class Blob:
    digest: str
    """`sha256:` and 64 hex digits."""
    size: int

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
    """Every blob that the manifest names. Raises StoreError when it is not a manifest."""
    try:
        document: dict[str, Any] = json.loads(manifest)
        found = [Blob(str(entry["digest"]), int(entry["size"])) for entry in [document["config"], *document["layers"]]]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: got no manifest ({error}), want a docker schema 2 manifest; publish the model again") from None
    for blob in found:
        if not _DIGEST.fullmatch(blob.digest):
            raise StoreError(f"{path}: got digest {blob.digest!r}, want sha256:<64 hex digits>; publish the model again")
    return found


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
