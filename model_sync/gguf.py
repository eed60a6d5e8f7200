"""`python -m model_sync.gguf NAME FILE STORE`: put a GGUF file into a model store, the way Ollama lays it out.

The same file and name give the same bytes everywhere, so the digest of a manifest identifies a model across a fleet.
"""

import argparse
import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from model_sync.store import StoreError, manifest_path, sha256

# GGUF value types with a fixed width, as struct formats. Source: ggml docs/gguf.md.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    12: "Q3_K_M",
    15: "Q4_K_M",
    17: "Q5_K_M",
    18: "Q6_K",
}


def _scalar(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in _SCALARS:
        return _scalar(file, _SCALARS[kind])
    if kind == _STRING:
        return file.read(_scalar(file, "Q")).decode(errors="replace")
    if kind == _ARRAY:
        item, count = _scalar(file, "I"), _scalar(file, "Q")
        for _ in range(count):
            _value(file, item)
        return None
    raise StoreError(f"GGUF: got value type {kind}, want 0..12; the file is damaged")


def metadata(path: Path) -> dict[str, Any]:
    """The general keys of a GGUF file; arrays are skipped. Raises StoreError when it is none."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise StoreError(f"{path}: got another file type, want GGUF; check the file")
        version, _, count = _scalar(file, "I"), _scalar(file, "Q"), _scalar(file, "Q")
        if version not in (2, 3):
            raise StoreError(f"{path}: got GGUF version {version}, want 2 or 3; convert the file")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = _value(file, _STRING)
            found[key] = _value(file, _scalar(file, "I"))
    return found


def _size_label(facts: dict[str, Any]) -> str:
    return str(facts.get("general.size_label") or "unknown")


def add(name: str, path: Path, store: Path) -> None:
    """Write the blobs and the manifest of model `name`. Raises StoreError."""
    target = store / manifest_path(name)
    facts = metadata(path)
    family = str(facts.get("general.architecture", "llama"))
    digest = sha256(path)
    blobs = store / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    blob = blobs / digest.replace(":", "-")
    if not blob.exists():
        fresh = blobs / f".{blob.name}.partial"
        shutil.copyfile(path, fresh)
        fresh.replace(blob)
    config = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": _size_label(facts),
        "file_type": _FILE_TYPES.get(int(facts.get("general.file_type", -1)), "unknown"),
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    encoded = json.dumps(config, separators=(",", ":")).encode()
    config_digest = f"sha256:{hashlib.sha256(encoded).hexdigest()}"
    (blobs / config_digest.replace(":", "-")).write_bytes(encoded)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": config_digest, "size": len(encoded)},
        "layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": path.stat().st_size}],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = store / f".manifest.{os.getpid()}.partial"
    fresh.write_text(json.dumps(manifest, separators=(",", ":")))
    fresh.replace(target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model_sync.gguf", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("store", type=Path)
    options = parser.parse_args(arguments)
    try:
        add(options.name, options.file, options.store)
    except (StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
