"""Find a model's GGUF file in a store laid out by Ollama. Source: ollama v0.32.15, types/model/name.go."""

import json
from pathlib import Path
from typing import Any

_GGUF = "application/vnd.ollama.image.model"


class StoreError(Exception):
    """The model is not there or not complete; the message says what to do."""


def find_gguf(store: Path, name: str) -> tuple[Path, str]:
    """Path of the weights and their digest (`sha256:…`). Raises StoreError."""
    model, _, tag = name.rpartition(":")
    parts = model.split("/")
    if len(parts) < 3:
        parts = ["registry.ollama.ai", *(["library"] if len(parts) == 1 else []), *parts]
    manifest_path = store.joinpath("manifests", *parts, tag)
    try:
        manifest: dict[str, Any] = json.loads(manifest_path.read_text())
    except FileNotFoundError:
        known = ", ".join(f"{path.parent.name}:{path.name}" for path in sorted(store.glob("manifests/*/*/*/*"))) or "none"
        raise StoreError(f"{name}: got no manifest in {store}, want one (it has {known}); publish the model or correct its name") from None
    except ValueError:
        raise StoreError(f"{manifest_path}: got no JSON, want a manifest; publish the model again") from None
    layer = next((layer for layer in manifest.get("layers", []) if layer.get("mediaType") == _GGUF), None)
    if layer is None:
        raise StoreError(f"{manifest_path}: got no GGUF layer, want one; this server runs GGUF models")
    blob = store / "blobs" / layer["digest"].replace(":", "-")
    if not blob.is_file() or blob.stat().st_size != layer["size"]:
        raise StoreError(f"{blob}: got no file of {layer['size']} bytes, want one; publish the model again")
    return blob, layer["digest"]
