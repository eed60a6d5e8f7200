"""What the stack's configuration says of the models, as the program hands it to the writer."""

import json
from dataclasses import dataclass

from model_sync.store import StoreError

IMAGE = "image"


@dataclass(frozen=True)
class Declared:
    """One model of the stack's configuration."""

    name: str
    source: str
    """`image`, `registry://host/namespace/model:tag`, `huggingface://host/owner/name[/file]:commit`, each also with `+http`; `https://…`,
    `http://…` or `file:///…`."""
    digest: str
    """Of the manifest in a registry or an image, of the file or the list elsewhere; may be empty for `image` and for a hub."""
    size: int
    """Bytes that the weights have at most."""
    context_length: int
    quantization: str
    """Of the GGUF file; empty is any."""
    replicas: int
    """Of the fleet, that hold it: 0 is all, NO_REPLICA is none."""
    keep_alive: str
    format: str = "gguf"
    """`gguf`, in one file or in parts, or `safetensors`."""


def declared(text: str) -> tuple[int, list[Declared]]:
    """Replicas of the fleet, and models. Raises StoreError."""
    try:
        found = json.loads(text)
        return int(found["fleet"]), [Declared(**model) for model in found["models"]]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"MODEL_SYNC_MODELS: got no declaration ({error}), want the program's; use images of one release") from None
