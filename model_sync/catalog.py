"""The catalog: which models a store serves. A model that is not in it is not served, whatever else lies in the store.

`catalog.json` at the top of a store: `{"version": 1, "fleet": …, "models": [{"name", "digest", …}], "problems": {name: line}}`, with the
fields of `Entry`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from model_sync.store import DIGEST, StoreError, has_content, manifest_path, write_file

FILE = "catalog.json"
VERSION = 1
NO_REPLICA = -1
"""For a model that model servers alone have."""


@dataclass(frozen=True)
class Entry:
    name: str
    digest: str
    """sha256 of the manifest file: what Ollama shows as the model's digest."""
    size: int
    """Bytes of all blobs."""
    context_length: int
    replicas: int
    """How many replicas of the fleet hold it; 0 is all, NO_REPLICA is none."""
    keep_alive: str


@dataclass(frozen=True)
class Catalog:
    fleet: int = 0
    """Replicas of the fleet; only counts for models that not all of them hold."""
    models: tuple[Entry, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    """Model to the line that says why it could not be delivered, or only an older version of it. The agent of a replica shows them."""

    def entry(self, name: str) -> Entry | None:
        return next((entry for entry in self.models if entry.name == name), None)


def parse(content: bytes, path: Path) -> Catalog:
    """Raises StoreError when it is no catalog of this version."""
    try:
        document = json.loads(content)
        if document["version"] != VERSION:
            raise StoreError(f"{path}: got version {document['version']!r}, want {VERSION}; use images of one release")
        problems = {str(name): str(line) for name, line in document.get("problems", {}).items()}
        return Catalog(int(document["fleet"]), tuple(_entry(model) for model in document["models"]), problems)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise StoreError(f"{path}: got no catalog ({error}), want one of version {VERSION}; run the writer again") from None


def _entry(model: dict[str, Any]) -> Entry:
    entry = Entry(**model)
    wrong = [each.name for each in fields(Entry) if type(getattr(entry, each.name)) is not each.type]
    if wrong or not DIGEST.fullmatch(entry.digest):
        raise ValueError(f"{wrong[0] if wrong else 'digest'} of a model")
    manifest_path(entry.name)
    return entry


def read(store: Path) -> Catalog | None:
    """None before the first publication. Raises StoreError."""
    path = store / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return parse(content, path)


def write(store: Path, catalog: Catalog) -> None:
    """In one step, and only when something changed: readers look at it every few seconds."""
    document: dict[str, Any] = {"version": VERSION, "fleet": catalog.fleet, "models": [asdict(entry) for entry in catalog.models]}
    document |= {"problems": dict(catalog.problems)} if catalog.problems else {}
    content = (json.dumps(document, indent=1) + "\n").encode()
    path = store / FILE
    if not has_content(path, content):
        write_file(store, path, content)


def is_held_by(name: str, replicas: int, fleet: int, ordinal: int) -> bool:
    """Rendezvous hashing: when the fleet grows or shrinks, only the models of the replicas that came or went move."""
    if replicas == NO_REPLICA:
        return False
    if not 0 < replicas < fleet:
        return True
    ranked = sorted(range(fleet), key=lambda each: hashlib.sha256(f"{name} {each}".encode()).digest())
    return ordinal in ranked[:replicas]
