"""The one writer of the shared store: declared models in, blobs first, then manifests, and last the catalog.

`publish` only adds, and `clean` only removes, so that between them every reader can move on to the new catalog.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from model_sync import catalog, gguf, templates
from model_sync.access import Access, AccessError
from model_sync.catalog import Catalog, Entry
from model_sync.declared import IMAGE, Declared
from model_sync.fetch import Pace, Target, fetch
from model_sync.source import ATTEMPTS, Source, SourceError, document
from model_sync.store import (
    MODEL_LAYER,
    PARAMS_LAYER,
    REPAIR,
    TEMPLATE_LAYER,
    Blob,
    StoreError,
    blobs,
    display_name,
    exclusive,
    file_digest,
    has_content,
    is_present,
    manifest_path,
    manifests,
    remove_manifest,
    room,
    sha256,
    sound_blobs,
    write_blob,
    write_file,
)

_REGISTRIES = {"registry": "https", "registry+http": "http"}
_SMALL_LAYERS_BYTES = 64 << 20
"""What templates, licenses and parameters may have beyond the declared size of the weights; blobs up to it are hashed again in each run."""


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
        problems: dict[str, Exception] = {}
        with exclusive(self.store):
            before = self._before()
            entries: list[Entry] = []
            for model in models:
                kept = before.entry(model.name)
                try:
                    entries.append(self._deliver(model))
                    print(f"{model.name}: published as {entries[-1].digest}", flush=True)
                except (StoreError, SourceError) as error:
                    where = ".source" if isinstance(error, AccessError) else ""
                    problems[model.name] = type(error)(f"models.{model.name}{where}: {error}")
                except OSError as error:
                    got = f"models.{model.name}: got {error.strerror or error} from {error.filename or self.store}"
                    problems[model.name] = StoreError(f"{got}, want to read and write there; check the volume")
                if model.name in problems:
                    entries += [kept] if kept else []
            catalog.write(self.store, Catalog(fleet, tuple(entries), {name: str(error) for name, error in problems.items()}))
        return list(problems.values())

    def _before(self) -> Catalog:
        try:
            return catalog.read(self.store) or Catalog()
        except (StoreError, OSError) as error:
            print(f"warning: {error}", flush=True)
            return Catalog()

    def _deliver(self, model: Declared) -> Entry:
        base = self._from_registry(model) if model.source != IMAGE and "registry" in urlsplit(model.source).scheme else None
        if base is None:
            base = self._from_image(model) if model.source == IMAGE else self._from_file(model)
        self._check(model, base)
        content = json.dumps(self._with_context(base, model.context_length), separators=(",", ":")).encode()
        target = self.store / manifest_path(model.name)
        if not has_content(target, content):
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
        absent = [blob for blob in wanted if not is_present(self.store, blob, verify=self.verify or blob.size <= _SMALL_LAYERS_BYTES)]
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
        facts = gguf.metadata(path)
        gguf.require_model(path, facts)
        return gguf.manifest(found, facts, self.store)

    def _is_whole(self, path: Path, digest: str) -> bool:
        """Its size is in the manifests that name it; a blob that none names yet is hashed."""
        if not path.is_file():
            return False
        sizes = {blob.size for manifest in manifests(self.store) for blob in sound_blobs(self.store, manifest) if blob.digest == digest}
        return (path.stat().st_size in sizes and not self.verify) or sha256(path) == digest

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
        facts = gguf.metadata(path)
        gguf.require_model(path, facts)
        found = gguf.quantization(facts)
        if model.quantization and model.quantization != found:
            raise StoreError(
                f"{model.source}: got quantization {found}, want {model.quantization}; correct the source or models.<name>.quantization"
            )
        for each in base["layers"]:
            if each["mediaType"] == TEMPLATE_LAYER:
                self._check_template(model, each["digest"])

    def _check_template(self, model: Declared, digest: str) -> None:
        content = (self.store / "blobs" / digest.replace(":", "-")).read_bytes()
        try:
            templates.check_go(content.decode(errors="replace"))
        except StoreError as error:
            raise StoreError(f"{model.source}: {error}") from None

    def _with_context(self, base: dict[str, Any], context_length: int) -> dict[str, Any]:
        """The model's parameters say its context, because the OpenAI API has no field for it."""
        params: dict[str, Any] = {}
        for layer in base["layers"]:
            if layer["mediaType"] == PARAMS_LAYER:
                params |= _parameters((self.store / "blobs" / layer["digest"].replace(":", "-")).read_bytes())
        params["num_ctx"] = context_length
        blob = write_blob(self.store, json.dumps(params, sort_keys=True, separators=(",", ":")).encode())
        others = [layer for layer in base["layers"] if layer["mediaType"] != PARAMS_LAYER]
        return base | {"layers": [*others, {"mediaType": PARAMS_LAYER, "digest": blob.digest, "size": blob.size}]}


def _require_digest(what: str, content: bytes, digest: str) -> None:
    found = file_digest(content)
    if digest and found != digest:
        raise StoreError(f"{what}: got manifest {found}, want {digest}; do not use it, or correct models.<name>.digest")


def _parameters(content: bytes) -> dict[str, Any]:
    """Of a layer. Raises StoreError when it is no JSON object."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise StoreError("got a layer of parameters that is no JSON object, want one; publish the model again")
    return found


def clean(store: Path) -> list[str]:
    """Remove what the catalog does not name: manifests, then blobs and what broken downloads left. Returns the names of removed models.

    Raises StoreError, and keeps every blob, when a manifest of the catalog is not what it says: its blobs are unknown then.
    """
    with exclusive(store):
        published = catalog.read(store)
        if published is None:
            raise StoreError(f"{store / catalog.FILE}: got none, want one; run the writer first")
        wanted = {manifest_path(entry.name): entry for entry in published.models}
        gone = [path for path in manifests(store) if path not in wanted]
        for path in gone:
            remove_manifest(store, path)
        for path, entry in wanted.items():
            if not (store / path).is_file() or file_digest((store / path).read_bytes()) != entry.digest:
                raise StoreError(f"{store / path}: got another manifest or none, want {entry.digest}; {REPAIR}")
        named = {blob.file_name for path in wanted for blob in sound_blobs(store, path)}
        for path in (store / "blobs").iterdir():
            if path.is_file() and path.name not in named:
                path.unlink()
    return [display_name(path) for path in gone]
