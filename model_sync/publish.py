"""The one writer of the shared store: declared models in, blobs first, then manifests, and last the catalog.

`publish` only adds, and `clean` only removes, so that between them every reader can move on to the new catalog.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from model_sync import catalog, gguf, templates, tree
from model_sync.access import AccessError
from model_sync.catalog import Catalog, Entry
from model_sync.declared import IMAGE, Declared
from model_sync.files import HUBS, LIST, File, of_artifact, of_hub, of_list, require_digest
from model_sync.forms import SAFETENSORS, deliver, require_quantization
from model_sync.intake import SMALL_BYTES, Intake
from model_sync.source import Source, SourceError, document
from model_sync.store import (
    MODEL_LAYER,
    PARAMS_LAYER,
    REPAIR,
    TEMPLATE_LAYER,
    StoreError,
    blobs,
    display_name,
    exclusive,
    file_digest,
    has_content,
    manifest_path,
    manifests,
    remove_manifest,
    sound_blobs,
    write_blob,
    write_file,
)

_REGISTRIES = {"registry": "https", "registry+http": "http"}


@dataclass
class Writer:
    seed: Path
    intake: Intake

    @property
    def store(self) -> Path:
        return self.intake.store

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
        base = self._base(model)
        if any(layer["mediaType"] == MODEL_LAYER for layer in base["layers"]):
            self._check(model, base)
            base = self._with_context(base, model.context_length)
        content = tree.written(base)
        target = self.store / manifest_path(model.name)
        if not has_content(target, content):
            write_file(self.store, target, content)
        size = sum(blob.size for blob in dict.fromkeys(blobs(content, target)))
        return Entry(model.name, file_digest(content), size, model.context_length, model.replicas, model.keep_alive)

    def _base(self, model: Declared) -> dict[str, Any]:
        """The manifest as the source has it, or one of ours for its files; its blobs are in the store then."""
        scheme = "" if model.source == IMAGE else urlsplit(model.source).scheme
        if not scheme:
            return self._from_image(model)
        if scheme in _REGISTRIES:
            return self._from_registry(model)
        if scheme in HUBS:
            return self._from_hub(model)
        if model.source.endswith(f"/{LIST}"):
            listed = document(Source(model.source, access=self.intake.access), self.intake.attempts)
            require_digest(model.source, listed, model.digest)
            return deliver(model, of_list(model.source, listed, self.intake.access), self.intake)
        return self._from_file(model)

    def _from_image(self, model: Declared) -> dict[str, Any]:
        path = self.seed / manifest_path(model.name)
        if not path.is_file():
            names = ", ".join(display_name(found) for found in manifests(self.seed)) or "none"
            raise StoreError(f"{path}: got no manifest, want one of {names}; build the image with the model, or name a source")
        content = path.read_bytes()
        require_digest(str(path), content, model.digest)
        return self._layers(
            content, str(path), model, lambda digest: Source(f"file://{quote(str(self.seed / 'blobs' / digest.replace(':', '-')))}")
        )

    def _from_registry(self, model: Declared) -> dict[str, Any]:
        scheme, rest = model.source.split("://", 1)
        host, _, name = rest.partition("/")
        repository, _, tag = name.rpartition(":")
        base = f"{_REGISTRIES[scheme]}://{host}/v2/{repository}"
        accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"}

        def source(path: str, headers: dict[str, str]) -> Source:
            return Source(f"{base}/{path}", headers, self.intake.access, repository)

        content = document(source(f"manifests/{tag}", accept), self.intake.attempts)
        require_digest(model.source, content, model.digest)
        return self._layers(content, f"{repository}:{tag}", model, lambda digest: source(f"blobs/{digest}", {}))

    def _layers(self, content: bytes, where: str, model: Declared, source: Callable[[str], Source]) -> dict[str, Any]:
        files = of_artifact(content, where, source)
        if files or model.format == SAFETENSORS:
            return deliver(model, files, self.intake)
        wanted = list(dict.fromkeys(blobs(content, Path(where))))
        total = sum(blob.size for blob in wanted)
        if total > model.size + SMALL_BYTES:
            raise StoreError(f"{model.source}: got {total} bytes of layers, want at most size {model.size}; raise models.<name>.size")
        absent = self.intake.absent(wanted)
        self.intake.reserve(absent, model.name)
        for blob in absent:
            self.intake.fetch(source(blob.digest), blob.digest, blob.size, blob.size)
        return json.loads(content)

    def _from_hub(self, model: Declared) -> dict[str, Any]:
        """The commit says which files; a digest is that of the one file, or of the manifest of several."""
        base = deliver(model, of_hub(model.source, self.intake.access, self.intake.attempts), self.intake)
        single = next((layer["digest"] for layer in base["layers"] if layer["mediaType"] == MODEL_LAYER), None)
        found = single or file_digest(tree.written(base))
        if model.digest not in ("", found):
            raise StoreError(f"{model.source}: got content {found}, want {model.digest}; do not use it, or correct models.<name>.digest")
        return base

    def _from_file(self, model: Declared) -> dict[str, Any]:
        source = Source(model.source, access=self.intake.access)
        blob = self.intake.take(File("", source, model.digest), model.size)
        facts = gguf.metadata(self.intake.path(model.digest))
        gguf.require_model(model.source, facts)
        return gguf.manifest(blob, facts, self.store)

    def _check(self, model: Declared, base: dict[str, Any]) -> None:
        """What the configuration says of the weights is true of the file."""
        layer = next(entry for entry in base["layers"] if entry["mediaType"] == MODEL_LAYER)
        if layer["size"] > model.size:
            raise StoreError(
                f"{model.source}: got weights of {layer['size']} bytes, want at most size {model.size}; raise models.<name>.size"
            )
        facts = gguf.metadata(self.intake.path(layer["digest"]))
        gguf.require_model(model.source, facts)
        require_quantization(model, gguf.quantization(facts))
        for each in base["layers"]:
            if each["mediaType"] == TEMPLATE_LAYER:
                self._check_template(model, each["digest"])

    def _check_template(self, model: Declared, digest: str) -> None:
        try:
            templates.check_go(self.intake.path(digest).read_bytes().decode(errors="replace"))
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
