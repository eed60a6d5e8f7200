"""`python -m model_sync.gguf NAME FILE STORE`: put a GGUF file into a model store, the way Ollama lays it out.

The same file and name give the same bytes everywhere, so the digest of a manifest identifies a model across a fleet.
"""

import argparse
import json
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from model_sync.store import MODEL_LAYER, Blob, StoreError, is_present, manifest_path, sha256, write_blob, write_file

# GGUF value types with a fixed width, as struct formats. Source: ggml docs/gguf.md.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L"},
    **{14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS"},
    **{23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M"},
    **{32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE"},
}
"""`general.file_type` to the name of the quantization. Source: llama.cpp, include/llama.h, enum llama_ftype."""


def _scalar(file: BinaryIO, code: str) -> Any:
    size = struct.calcsize(f"<{code}")
    content = file.read(size)
    if len(content) < size:
        raise StoreError("GGUF: got the end inside of the metadata, want all of it; the file is cut off")
    return struct.unpack(f"<{code}", content)[0]


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
    try:
        return _metadata(path)
    except (OverflowError, MemoryError, RecursionError):
        raise StoreError(f"{path}: got metadata with lengths beyond the file, want GGUF; the file is damaged") from None


def _metadata(path: Path) -> dict[str, Any]:
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


def quantization(facts: dict[str, Any]) -> str:
    return _FILE_TYPES.get(int(facts.get("general.file_type", -1)), "unknown")


def manifest(blob: Blob, facts: dict[str, Any], store: Path) -> dict[str, Any]:
    """The manifest of a model that is this one file; its config blob is written."""
    family = str(facts.get("general.architecture", "llama"))
    config = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": str(facts.get("general.size_label") or "unknown"),
        "file_type": quantization(facts),
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [blob.digest]},
    }
    written = write_blob(store, json.dumps(config, separators=(",", ":")).encode())
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": written.digest, "size": written.size},
        "layers": [{"mediaType": MODEL_LAYER, "digest": blob.digest, "size": blob.size}],
    }


def add(name: str, path: Path, store: Path, *, link: bool = False) -> None:
    """Write the blobs and the manifest of model `name`; `link`: the weights stay where they are. Raises StoreError."""
    target = store / manifest_path(name)
    facts = metadata(path)
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
    write_file(store, target, json.dumps(manifest(blob, facts, store), separators=(",", ":")).encode())


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
