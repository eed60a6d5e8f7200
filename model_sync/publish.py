"""The one writer of the shared store: declared models in, blobs first, then manifests, and last the catalog.

`publish` only adds, and `clean` only removes, so that between them every reader can move on to the new catalog.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from model_sync import catalog, gguf
from model_sync.access import Access, AccessError
from model_sync.catalog import Catalog, Entry
from model_sync.fetch import ATTEMPTS, Pace, Source, SourceError, Target, document, fetch
from model_sync.store import (
    MODEL_LAYER,
    PARAMS_LAYER,
    Blob,
    StoreError,
    blobs,
    display_name,
    exclusive,
    file_digest,
    is_present,
    manifest_path,
    manifests,
    remove_manifest,
    room,
    sha256,
    write_blob,
    write_file,
)

IMAGE = "image"
_REGISTRIES = {"registry": "https", "registry+http": "http"}
_SMALL_LAYERS_BYTES = 64 << 20
"""What templates, licenses and parameters may have beyond the declared size of the weights."""


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


@dataclass
class Writer:
    seed: Path
    store: Path
    capacity: int | None
    pace: Pace
    verify: bool
    attempts: int = ATTEMPTS
    access: Access = field(default_factory=Access)

    def publish(self, fleet: int, models: Sequence[Declared]) -> list[Exception]:
        """Deliver every model and then the catalog. A model that cannot be delivered keeps the version that is served, if any."""
        problems: list[Exception] = []
        with exclusive(self.store):
            before = self._before(problems)
            entries: list[Entry] = []
            for model in models:
                kept = before.entry(model.name)
                try:
                    entries.append(self._deliver(model))
                    print(f"{model.name}: published as {entries[-1].digest}", flush=True)
                except (StoreError, SourceError) as error:
                    where = ".source" if isinstance(error, AccessError) else ""
                    problems.append(type(error)(f"models.{model.name}{where}: {error}"))
                    entries += [kept] if kept else []
            catalog.write(self.store, Catalog(fleet, tuple(entries)))
        return problems

    def _before(self, problems: list[Exception]) -> Catalog:
        try:
            return catalog.read(self.store) or Catalog()
        except StoreError as error:
            print(f"warning: {error}", flush=True)
            return Catalog()

    def _deliver(self, model: Declared) -> Entry:
        base = self._from_registry(model) if model.source != IMAGE and "registry" in urlsplit(model.source).scheme else None
        if base is None:
            base = self._from_image(model) if model.source == IMAGE else self._from_file(model)
        self._check(model, base)
        content = json.dumps(self._with_context(base, model.context_length), separators=(",", ":")).encode()
        target = self.store / manifest_path(model.name)
        if not target.is_file() or target.read_bytes() != content:
            write_file(self.store, target, content)
        size = sum(blob.size for blob in dict.fromkeys(blobs(content, target)))
        return Entry(model.name, file_digest(content), size, model.context_length, model.replicas, model.keep_alive)

    def _from_image(self, model: Declared) -> dict[str, Any]:
        path = self.seed / manifest_path(model.name)
        if not path.is_file():
            names = ", ".join(display_name(found) for found in manifests(self.seed)) or "none"
            raise StoreError(f"{path}: got no manifest, want one of {names}; build the image with the model, or name a source")
        content = path.read_bytes()
        _require_digest(str(path), content, model.digest)
        return self._layers(content, path, model, lambda blob: Source(f"file://{quote(str(self.seed / 'blobs' / blob.file_name))}"))

    def _from_registry(self, model: Declared) -> dict[str, Any]:
        scheme, rest = model.source.split("://", 1)
        host, _, name = rest.partition("/")
        repository, _, tag = name.rpartition(":")
        base = f"{_REGISTRIES[scheme]}://{host}/v2/{repository}"
        accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"}

        def source(path: str, headers: dict[str, str]) -> Source:
            return Source(f"{base}/{path}", headers, self.access, repository)

        content = document(source(f"manifests/{tag}", accept), self.attempts)
        _require_digest(model.source, content, model.digest)
        return self._layers(content, Path(f"{repository}:{tag}"), model, lambda blob: source(f"blobs/{blob.digest}", {}))

    def _layers(self, content: bytes, path: Path, model: Declared, source: Any) -> dict[str, Any]:
        wanted = list(dict.fromkeys(blobs(content, path)))
        total = sum(blob.size for blob in wanted)
        if total > model.size + _SMALL_LAYERS_BYTES:
            raise StoreError(f"{model.source}: got {total} bytes of layers, want at most size {model.size}; raise models.<name>.size")
        absent = [blob for blob in wanted if not is_present(self.store, blob, verify=self.verify)]
        self._reserve(sum(blob.size for blob in absent) - self._partial_bytes(absent), model)
        for blob in absent:
            self._fetch(source(blob), blob.digest, blob.size, blob.size)
        return json.loads(content)

    def _from_file(self, model: Declared) -> dict[str, Any]:
        blob = Blob(model.digest, 0)
        path = self.store / "blobs" / blob.file_name
        if not self._is_whole(path, model.digest):
            self._fetch(Source(model.source, access=self.access), model.digest, None, model.size)
        found = Blob(model.digest, path.stat().st_size)
        return gguf.manifest(found, gguf.metadata(path), self.store)

    def _is_whole(self, path: Path, digest: str) -> bool:
        """Its size is in the manifests that name it; a blob that none names yet is hashed."""
        if not path.is_file():
            return False
        sizes = {blob.size for manifest in manifests(self.store) for blob in self._named(manifest) if blob.digest == digest}
        return (path.stat().st_size in sizes and not self.verify) or sha256(path) == digest

    def _named(self, manifest: Path) -> list[Blob]:
        try:
            return blobs((self.store / manifest).read_bytes(), manifest)
        except StoreError:
            return []

    def _partial_bytes(self, absent: Sequence[Blob]) -> int:
        partials = [self.store / "blobs" / f".{blob.file_name}.partial" for blob in absent]
        return sum(path.stat().st_size for path in partials if path.is_file())

    def _reserve(self, needed: int, model: Declared) -> None:
        free = room(self.store, self.capacity)
        if needed > free:
            raise StoreError(f"{self.store}: got {free} bytes free, want {needed} for {model.name}; enlarge storage.shared.size")

    def _fetch(self, source: Source, digest: str, size: int | None, limit: int) -> None:
        path = self.store / "blobs" / digest.replace(":", "-")
        fetch(source, Target(path, digest, size, limit, lambda: room(self.store, self.capacity)), self.pace, self.attempts)

    def _check(self, model: Declared, base: dict[str, Any]) -> None:
        """What the configuration says of the weights is true of the file."""
        layer = next((entry for entry in base["layers"] if entry["mediaType"] == MODEL_LAYER), None)
        if layer is None:
            raise StoreError(f"{model.source}: got no layer {MODEL_LAYER}, want one; the manifest is of something else")
        if layer["size"] > model.size:
            raise StoreError(
                f"{model.source}: got weights of {layer['size']} bytes, want at most size {model.size}; raise models.<name>.size"
            )
        path = self.store / "blobs" / Blob(layer["digest"], layer["size"]).file_name
        found = gguf.quantization(gguf.metadata(path))
        if model.quantization and model.quantization != found:
            raise StoreError(
                f"{model.source}: got quantization {found}, want {model.quantization}; correct the source or models.<name>.quantization"
            )

    def _with_context(self, base: dict[str, Any], context_length: int) -> dict[str, Any]:
        """The model's parameters say its context, because the OpenAI API has no field for it."""
        params: dict[str, Any] = {}
        for layer in base["layers"]:
            if layer["mediaType"] == PARAMS_LAYER:
                params |= json.loads((self.store / "blobs" / layer["digest"].replace(":", "-")).read_bytes())
        params["num_ctx"] = context_length
        blob = write_blob(self.store, json.dumps(params, sort_keys=True, separators=(",", ":")).encode())
        others = [layer for layer in base["layers"] if layer["mediaType"] != PARAMS_LAYER]
        return base | {"layers": [*others, {"mediaType": PARAMS_LAYER, "digest": blob.digest, "size": blob.size}]}


def _require_digest(what: str, content: bytes, digest: str) -> None:
    found = file_digest(content)
    if digest and found != digest:
        raise StoreError(f"{what}: got manifest {found}, want {digest}; do not use it, or correct models.<name>.digest")


def clean(store: Path) -> list[str]:
    """Remove what the catalog does not name: manifests, then blobs and what broken downloads left. Returns the names of removed models."""
    with exclusive(store):
        published = catalog.read(store)
        if published is None:
            raise StoreError(f"{store / catalog.FILE}: got none, want one; run the writer first")
        wanted = {manifest_path(entry.name) for entry in published.models}
        gone = [path for path in manifests(store) if path not in wanted]
        for path in gone:
            remove_manifest(store, path)
        named = {blob.file_name for path in manifests(store) for blob in blobs((store / path).read_bytes(), path)}
        for path in (store / "blobs").iterdir():
            if path.is_file() and path.name not in named:
                path.unlink()
    return [display_name(path) for path in gone]
