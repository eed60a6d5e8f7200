"""Models of several files: a tree of safetensors, or a GGUF in parts. Whole or not at all, and each file under its own name."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from model_sync import gguf, tree
from model_sync.catalog import NO_REPLICA
from model_sync.declared import Declared
from model_sync.files import File
from model_sync.intake import SMALL_BYTES, Intake
from model_sync.store import Blob, StoreError, blobs, manifest_path

SAFETENSORS = "safetensors"


def deliver(model: Declared, files: Sequence[File], intake: Intake) -> dict[str, Any]:
    """The manifest, when all files are in the store. Raises StoreError or SourceError."""
    take = _Take(model, intake)
    return take.tree(files) if model.format == SAFETENSORS else take.gguf(files)


class _Take:
    def __init__(self, model: Declared, intake: Intake) -> None:
        self._model, self._intake = model, intake
        self._before = _files(intake, model.name)
        self._taken: dict[str, Blob] = {}

    def tree(self, files: Iterable[File]) -> dict[str, Any]:
        """Small files first: they say which of the weights are wanted."""
        found = {file.path: file for file in files}
        names = tree.taken(found)
        self._fetch([found[name] for name in names if not name.endswith(tree.WEIGHTS)], SMALL_BYTES, "files beside the weights")
        try:
            weights = tree.chosen(names, lambda name: tree.content(self._intake.path(self._taken[name].digest)))
        except StoreError as error:
            raise StoreError(f"{self._model.source}: {error}") from None
        self._fetch([found[name] for name in weights], self._model.size, "weights")
        return tree.manifest(self._taken.items(), self._intake.store)

    def gguf(self, files: Iterable[File]) -> dict[str, Any]:
        found = {file.path: file for file in files if file.path.endswith(".gguf")}
        names = gguf.parts_of(min(found, default=""))
        if missing := [name for name in names if name not in found]:
            raise StoreError(f"{self._model.source}: got no {missing[0] or 'GGUF file'}, want all of a model; publish it again")
        if others := sorted(found.keys() - set(names)):
            raise StoreError(f"{self._model.source}: got {others[0]} beside {names[0]}, want one model; name a source of it alone")
        if len(names) > 1 and self._model.replicas != NO_REPLICA:
            want = "want one file for the fleet, whose engine loads no other"
            raise StoreError(f"{self._model.source}: got {len(names)} parts, {want}; set models.<name>.replicas to 0, or join the parts")
        self._fetch([found[name] for name in names], self._model.size, "weights")
        paths = {name: self._intake.path(self._taken[name].digest) for name in names}
        if len(names) == 1:
            (name,) = names
            facts = gguf.metadata(paths[name])
            gguf.require_model(found[name].source.url, facts)
            return gguf.manifest(self._taken[name], facts, self._intake.store)
        quantization = gguf.quantization(gguf.require_parts(paths))
        require_quantization(self._model, quantization)
        return tree.manifest(((name.rpartition("/")[2], blob) for name, blob in self._taken.items()), self._intake.store)

    def _fetch(self, files: Sequence[File], limit: int, what: str) -> None:
        """Files of one kind, which may have so many bytes together. Each is looked at as soon as it is there."""
        known = sum(file.size or 0 for file in files)
        if known > limit:
            raise StoreError(f"{self._model.source}: got {known} bytes of {what}, want at most {limit}; {_do(what)}")
        self._intake.reserve(self._intake.absent(Blob(file.digest, file.size) for file in files if file.digest and file.size is not None),
                             self._model.name)  # fmt: skip
        left = limit
        for file in files:
            blob = self._intake.take(file, left, self._before.get(file.path))
            left -= blob.size
            if left < 0:
                raise StoreError(f"{file.source.url}: got {limit - left} bytes of {what}, want at most {limit}; {_do(what)}")
            if self._model.format == SAFETENSORS:
                self._check(file, blob)
            self._taken[file.path] = blob

    def _check(self, file: File, blob: Blob) -> None:
        try:
            tree.check_file(file.path, self._intake.path(blob.digest))
        except StoreError as error:
            raise StoreError(f"{file.source.url}: {error}") from None


def _do(what: str) -> str:
    return "raise models.<name>.size" if what == "weights" else "use a repository of this model alone"


def require_quantization(model: Declared, found: str) -> None:
    """Raises StoreError unless the weights are quantized as declared."""
    if model.quantization and model.quantization != found:
        raise StoreError(
            f"{model.source}: got quantization {found}, want {model.quantization}; correct the source or models.<name>.quantization"
        )


def _files(intake: Intake, name: str) -> dict[str, Blob]:
    """What the store has of the model by the paths of its files; nothing where that is damaged, or in another form."""
    path = intake.store / manifest_path(name)
    try:
        content = path.read_bytes()
        blobs(content, path)
        layers = json.loads(content)["layers"]
        return {layer["annotations"][tree.TITLE]: Blob(layer["digest"], layer["size"]) for layer in layers}
    except (OSError, StoreError, KeyError, TypeError):
        return {}
