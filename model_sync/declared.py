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
    """`image`, `registry://host/namespace/model:tag`, `registry+http://…`, `https://…`, `http://…` or `file:///…`."""
    digest: str
    """Of the manifest in a registry, of the file elsewhere; may be empty for `image`."""
    size: int
    """Bytes that the weights have at most."""
    context_length: int
    quantization: str
    """Of the GGUF file; empty is any."""
    replicas: int
    keep_alive: str


def declared(text: str) -> tuple[int, list[Declared]]:
    """Replicas of the fleet, and models. Raises StoreError."""
    try:
        found = json.loads(text)
        return int(found["fleet"]), [Declared(**model) for model in found["models"]]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"MODEL_SYNC_MODELS: got no declaration ({error}), want the program's; use images of one release") from None
