"""`python -m model_sync.tree NAME DIRECTORY STORE`: put a model that is a tree of files (safetensors) into a model store.

The manifest has the layout of an OCI artifact's: a layer for each file, with its SHA-256, and its path in the annotation that OCI has for
it. The same files give the same manifest everywhere.
"""

import argparse
import json
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model_sync import templates
from model_sync.store import StoreError, manifest_path, take, write_blob, write_file

FILE_LAYER = "application/vnd.modelfleet.file"
TITLE = "org.opencontainers.image.title"
_TAKEN = re.compile(r".*\.(safetensors|json|jinja|txt|model|tiktoken)")
"""Weights, configuration and tokenizer. Python files and pickles are left out: a server would run them."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_HEAD_BYTES = 100 << 20
"""The most that the head of a safetensors file may have. Source: safetensors, MAX_HEADER_SIZE in src/tensor.rs."""


def files(tree: Path) -> Iterator[Path]:
    """What is taken of a directory, relative to it and sorted. Raises StoreError at a name that no store can have."""
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree)
        if not path.is_file() or not _TAKEN.fullmatch(name.name) or any(part.startswith(".") for part in name.parts):
            continue
        if not all(_PART.fullmatch(part) for part in name.parts):
            raise StoreError(f"{path}: got a name with other characters, want letters, digits and ._-; rename the file")
        yield name


def check(path: Path) -> None:
    """Raises StoreError unless a safetensors file has the head and the bytes that its format wants."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(_HEAD_BYTES, size - 8):
                raise ValueError(f"a head of {length} bytes")
            head: Any = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in head.items() if name != "__metadata__"]
        if max(ends, default=0) != size - 8 - length:
            raise ValueError(f"{size} bytes for tensors that end at {8 + length + max(ends, default=0)}")
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: got no sound safetensors file ({str(error)[:100]}), want one; download it again") from None


def add(name: str, tree: Path, store: Path) -> None:
    """Write the blobs and the manifest of model `name`. Raises StoreError."""
    target = store / manifest_path(name)
    found = list(files(tree))
    if Path("config.json") not in found or not any(path.suffix == ".safetensors" for path in found):
        raise StoreError(f"{tree}: got no config.json with safetensors beside it, want a model's tree; name its directory")
    layers: list[dict[str, Any]] = []
    for path in found:
        if path.suffix == ".safetensors":
            check(tree / path)
        for template in _templates(tree / path):
            templates.check(template)
        blob = take(tree / path, store)
        layers.append({"mediaType": FILE_LAYER, "digest": blob.digest, "size": blob.size, "annotations": {TITLE: path.as_posix()}})
    config = write_blob(store, b"{}")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.digest, "size": config.size},
        "layers": layers,
    }
    write_file(store, target, json.dumps(manifest, separators=(",", ":")).encode())


def _templates(path: Path) -> Iterator[str]:
    """Chat templates, which a server runs: files of their own, and in the tokenizer's configuration. Raises StoreError."""
    if path.suffix == ".jinja":
        yield path.read_text(errors="replace")
    if path.name == "tokenizer_config.json":
        try:
            found: Any = json.loads(path.read_bytes())
            given = found.get("chat_template") or []
            yield from [given] if isinstance(given, str) else [str(each["template"]) for each in given]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StoreError(f"{path}: got another form, want the configuration of a tokenizer; download it again") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model_sync.tree", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("directory", type=Path)
    parser.add_argument("store", type=Path)
    options = parser.parse_args(arguments)
    try:
        add(options.name, options.directory, options.store)
    except (StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
