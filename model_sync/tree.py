"""`python -m model_sync.tree NAME DIRECTORY STORE`: put a model that is a tree of files (safetensors) into a model store.

The manifest has the layout of an OCI artifact's: a layer for each file, with its SHA-256, and its path in the annotation that OCI has for
it. The same files give the same manifest everywhere.
"""

import argparse
import json
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from model_sync import templates
from model_sync.store import Blob, StoreError, manifest_path, take, write_blob, write_file

FILE_LAYER = "application/vnd.modelfleet.file"
TITLE = "org.opencontainers.image.title"
WEIGHTS = ".safetensors"
INDEX, MODULES = "model.safetensors.index.json", "modules.json"
_TAKEN = re.compile(r".*\.(safetensors|json|jinja|txt|model|tiktoken)")
"""Weights, configuration and tokenizer. Python files and pickles are left out: a server would run them."""
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,7}")
_HEAD_BYTES = 8 << 20
"""The most that the head of a safetensors file may have. The format allows 100 MB, which is more than a writer has memory for; a file with
2,000 tensors has 250 KB."""
_DOCUMENT_BYTES = 16 << 20
"""The most that is read of an index or of a tokenizer's configuration."""
_TEMPLATES = ("tokenizer_config.json", "processor_config.json", "chat_template.json")


def taken(names: Iterable[str]) -> list[str]:
    """What is taken of a tree with these paths, before a choice among its weights. Raises StoreError at weights that no store can name."""
    found = sorted(name for name in names if _TAKEN.fullmatch(PurePosixPath(name).name))
    for name in found:
        if name.endswith(WEIGHTS) and not _PATH.fullmatch(name):
            raise StoreError(f"{name[:200]}: got a path with other characters, want letters, digits and ._-; rename the file")
    return [name for name in found if _PATH.fullmatch(name)]


def chosen(names: Sequence[str], read: Callable[[str], bytes]) -> list[str]:
    """Which of the weights an engine reads; `names` are those that are taken, `read` has the content of a small one. Raises StoreError.

    Repositories hold the same weights more than once: in the author's own layout (`original/`, `consolidated.safetensors`), or for another
    program (`onnx/`). The index names the right ones at the top, and `modules.json` those directories that belong to a model for texts.
    """
    here = {PurePosixPath(name).parent.as_posix() for name in names} & {".", *(_modules(read) if MODULES in names else ())}
    weights = [name for name in names if name.endswith(WEIGHTS) and PurePosixPath(name).parent.as_posix() in here]
    if "config.json" not in names or not (weights or INDEX in names):
        raise StoreError("got no config.json with safetensors beside it, want a model's tree; name its directory")
    if INDEX in names:
        named = _named(read)
        if missing := sorted(named - set(weights)):
            raise StoreError(f"{INDEX}: got no {missing[0][:100]} beside it, want every file that it names; publish all of them")
        return [name for name in weights if name in named or "/" in name]
    others = [name for name in weights if not name.startswith("consolidated")]
    return others or weights


def _named(read: Callable[[str], bytes]) -> set[str]:
    """The files that an index of weights names."""
    try:
        return {str(name) for name in json.loads(read(INDEX))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreError(f"{INDEX}: got another form, want an index of weights; download it again") from None


def _modules(read: Callable[[str], bytes]) -> set[str]:
    """The directories that a sentence transformer is made of. Source: sentence-transformers, SentenceTransformer.load."""
    try:
        return {str(each["path"]) for each in json.loads(read(MODULES))}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreError(f"{MODULES}: got another form, want a list of modules; download it again") from None


def check(path: Path) -> None:
    """Raises StoreError, without the file's name, unless a safetensors file has the head and the bytes that its format wants."""
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
        raise StoreError(f"got no sound safetensors file ({str(error)[:100]}), want one; download it again") from None


def check_templates(name: str, path: Path) -> None:
    """Raises StoreError, without the file's name, where file `name` of a tree brings a chat template that no server may run."""
    if name.endswith(".jinja"):
        templates.check(content(path).decode(errors="replace"))
    elif PurePosixPath(name).name in _TEMPLATES:
        for template in _templates(content(path)):
            templates.check(template)


def _templates(document: bytes) -> list[str]:
    try:
        given: Any = json.loads(document).get("chat_template") or []
        return [given] if isinstance(given, str) else [str(each["template"]) for each in given]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreError("got another form, want a configuration with its chat templates; download it again") from None


def content(path: Path) -> bytes:
    """Of a small file. Raises StoreError, without its name, when it is none."""
    if (size := path.stat().st_size) > _DOCUMENT_BYTES:
        raise StoreError(f"got {size} bytes, want at most {_DOCUMENT_BYTES}; do not use this model")
    return path.read_bytes()


def manifest(files: Iterable[tuple[str, Blob]], store: Path) -> dict[str, Any]:
    """The manifest of a model with these files, by their paths; its config blob is written."""
    config = write_blob(store, b"{}")
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.digest, "size": config.size},
        "layers": [
            {"mediaType": FILE_LAYER, "digest": blob.digest, "size": blob.size, "annotations": {TITLE: name}}
            for name, blob in sorted(files)
        ],
    }


def written(document: object) -> bytes:
    """A manifest as it is stored, by which its digest is counted."""
    return json.dumps(document, separators=(",", ":")).encode()


def add(name: str, directory: Path, store: Path) -> str:
    """Write the blobs and the manifest of model `name`. Returns the manifest's digest. Raises StoreError."""
    target = store / manifest_path(name)
    names = taken(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    try:
        weights = chosen(names, lambda each: content(directory / each))
    except StoreError as error:
        raise StoreError(f"{directory}: {error}") from None
    files: list[tuple[str, Blob]] = []
    for each in _whole(names, weights):
        try:
            check_file(each, directory / each)
        except StoreError as error:
            raise StoreError(f"{directory / each}: {error}") from None
        files.append((each, take(directory / each, store)))
    found = written(manifest(files, store))
    write_file(store, target, found)
    return Blob.of(found).digest


def check_file(name: str, path: Path) -> None:
    """Raises StoreError, without the file's name."""
    if name.endswith(WEIGHTS):
        check(path)
    else:
        check_templates(name, path)


def _whole(names: Sequence[str], weights: Sequence[str]) -> Iterator[str]:
    """What is small, and the chosen weights."""
    yield from (name for name in names if not name.endswith(WEIGHTS) or name in weights)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model_sync.tree", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("directory", type=Path)
    parser.add_argument("store", type=Path)
    options = parser.parse_args(arguments)
    try:
        print(add(options.name, options.directory, options.store))
    except (StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
