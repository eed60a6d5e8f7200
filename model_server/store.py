"""Find a model's weights in a store laid out by Ollama. Source: ollama v0.32.15, types/model/name.go."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_GGUF = "application/vnd.ollama.image.model"
_FILE, _TITLE = "application/vnd.modelfleet.file", "org.opencontainers.image.title"
"""One file of a tree, and where its path in the tree stands: model_sync/tree.py writes it, and OCI artifacts have it there too."""
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class StoreError(Exception):
    """The model is not there or not complete; the message says what to do."""


def _manifest(store: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Path and content of a model's manifest. Raises StoreError."""
    model, _, tag = name.rpartition(":")
    parts = model.split("/")
    if len(parts) < 3:
        parts = ["registry.ollama.ai", *(["library"] if len(parts) == 1 else []), *parts]
    manifest_path = store.joinpath("manifests", *parts, tag)
    try:
        return manifest_path, json.loads(manifest_path.read_text())
    except FileNotFoundError:
        known = ", ".join(f"{path.parent.name}:{path.name}" for path in sorted(store.glob("manifests/*/*/*/*"))) or "none"
        raise StoreError(f"{name}: got no manifest in {store}, want one (it has {known}); publish the model or correct its name") from None
    except ValueError:
        raise StoreError(f"{manifest_path}: got no JSON, want a manifest; publish the model again") from None


def find_gguf(store: Path, name: str, directory: Path) -> tuple[Path, str]:
    """Path of the weights and their digest (`sha256:…`); of split ones the first part, beside the others in `directory`.

    Raises StoreError.
    """
    manifest_path, manifest = _manifest(store, name)
    layer = next((layer for layer in manifest.get("layers", []) if layer.get("mediaType") == _GGUF), None)
    if layer is not None:
        return _blob(store, layer), layer["digest"]
    parts = sorted(path for path in _files(manifest) if path.endswith(".gguf"))
    if not parts:
        raise StoreError(f"{manifest_path}: got no GGUF layer, want one; this engine runs GGUF models")
    return _linked(store, manifest_path, manifest, directory) / parts[0], _digest(manifest_path)


def find_tree(store: Path, name: str, directory: Path, manner: str = "") -> tuple[Path, str]:
    """Below `directory` the files of a model by their names, which are links into the store; and the digest of its manifest, which has
    those of all files. Another content, or `manner` of computing, has another path: vLLM names its files of KV by that alone
    (vllm/v1/kv_offload/file_mapper.py, 0.32.0). Raises StoreError."""
    manifest_path, manifest = _manifest(store, name)
    if "config.json" not in _files(manifest):
        raise StoreError(f"{manifest_path}: got no config.json, want a model as a tree of files; this engine runs safetensors")
    digest = _digest(manifest_path)
    below = hashlib.sha256(f"{digest} {manner}".encode()).hexdigest()[:32]
    return _linked(store, manifest_path, manifest, directory / below), digest


def _files(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Path in the tree to the layer of each file."""
    layers = [layer for layer in manifest.get("layers", []) if layer.get("mediaType") == _FILE]
    return {str((layer.get("annotations") or {}).get(_TITLE, "")): layer for layer in layers}


def _linked(store: Path, manifest_path: Path, manifest: Mapping[str, Any], directory: Path) -> Path:
    """`directory`, with the files of the tree."""
    shutil.rmtree(directory, ignore_errors=True)
    for path, layer in _files(manifest).items():
        if not _PATH.fullmatch(path):
            raise StoreError(f"{manifest_path}: got the path {path[:80]!r}, want one within the tree; do not use the model")
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(_blob(store, layer))
    return directory


def _digest(manifest_path: Path) -> str:
    return f"sha256:{hashlib.sha256(manifest_path.read_bytes()).hexdigest()}"


def _blob(store: Path, layer: Mapping[str, Any]) -> Path:
    blob = store / "blobs" / layer["digest"].replace(":", "-")
    if not blob.is_file() or blob.stat().st_size != layer["size"]:
        raise StoreError(f"{blob}: got no file of {layer['size']} bytes, want one; publish the model again")
    return blob.absolute()
