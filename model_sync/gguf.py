"""`python -m model_sync.gguf NAME FILE STORE`: put a GGUF file into a model store, the way Ollama lays it out.

The same file and name give the same bytes everywhere, so the digest of a manifest identifies a model across a fleet.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_sync import header, templates
from model_sync.store import MODEL_LAYER, Blob, StoreError, manifest_path, take, write_blob, write_file

_FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L"},
    **{14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS"},
    **{23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M"},
    **{32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE"},
}
"""`general.file_type` to the name of the quantization. Source: llama.cpp, include/llama.h, enum llama_ftype."""


_FAMILY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TEMPLATE = "tokenizer.chat_template"
_SPLIT = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
"""Source: llama.cpp, src/llama.cpp, llama_split_path."""
_PARTS = 512


def metadata(path: Path) -> dict[str, Any]:
    """The keys of a GGUF file without its arrays. Raises StoreError when it is none, or no sound one."""
    return header.read(path)


def require_model(where: Path | str, facts: Mapping[str, Any]) -> None:
    """Raises StoreError unless it is one language model in one file, with templates that a server may run. `where`: what is named."""
    parts = facts.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        do = "name a source that lists all of them (docs/models.md), or join them with llama-gguf-split --merge"
        raise StoreError(f"{where}: got one of {parts} parts, want a model in one file; {do}")
    require_language_model(where, facts)


def require_parts(parts: Mapping[str, Path]) -> dict[str, Any]:
    """The keys of a model that is split into these files, in order. Raises StoreError unless they are all of its parts."""
    found: dict[str, Any] = {}
    for number, (name, path) in enumerate(parts.items()):
        facts = metadata(path)
        got = facts.get("split.no", 0), facts.get("split.count", 1)
        if got != (number, len(parts)):
            raise StoreError(f"{name}: got part {got[0]} of {got[1]} in it, want {number} of {len(parts)}; publish the parts of one model")
        if number == 0:
            require_language_model(path, facts)
            found = facts
    return found


def parts_of(name: str) -> list[str]:
    """The names of all parts of a split model, by that of one of them; only the name itself, where it is that of no part."""
    found = _SPLIT.fullmatch(name)
    if found is None or not 1 <= int(found[2]) <= int(found[3]) <= _PARTS:
        return [name]
    return [f"{found[1]}-{number:05}-of-{found[3]}.gguf" for number in range(1, int(found[3]) + 1)]


def require_language_model(where: Path | str, facts: Mapping[str, Any]) -> None:
    """Raises StoreError unless it is a language model, or the first part of one, with templates that a server may run."""
    kind = "mmproj" if facts.get("general.architecture") == "clip" else facts.get("general.type", "model")
    if kind != "model":
        name = {"mmproj": "a projector for images", "adapter": "an adapter"}.get(str(kind), f"a GGUF of type {str(kind)[:20]!r}")
        raise StoreError(f"{where}: got {name}, want a language model; name that, or a registry's model that has both as layers")
    for key, template in facts.items():
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}."):
            try:
                templates.check(str(template))
            except StoreError as error:
                raise StoreError(f"{where}: {error}") from None


def quantization(facts: dict[str, Any]) -> str:
    kind = facts.get("general.file_type")
    return _FILE_TYPES.get(kind, "unknown") if type(kind) is int else "unknown"


def manifest(blob: Blob, facts: dict[str, Any], store: Path) -> dict[str, Any]:
    """The manifest of a model that is this one file; its config blob is written."""
    family, label = str(facts.get("general.architecture", "llama")), str(facts.get("general.size_label", ""))
    if not _FAMILY.fullmatch(family):
        raise StoreError(f"{blob.file_name}: got architecture {family[:64]!r}, want a name of small letters; the file is damaged")
    config = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": label if _LABEL.fullmatch(label) else "unknown",
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
    require_model(path, facts)
    blob = take(path, store, link=link)
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
