"""The catalog: which models a replica holds, written beside them by the writer of the store."""

import logging
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

log = logging.getLogger("ollama_agent")


class Model(BaseModel):
    """One declared model. Fields of later catalogs are not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(min_length=1)
    digest: str = ""
    """sha256 of the manifest, 64 hex digits, with or without `sha256:`; empty: any."""
    context_length: int = Field(ge=1)
    """Tokens that it must be loaded for."""
    size: int = 0
    """Bytes of all its blobs."""
    keep_alive: str = "-1"
    """How long it stays loaded without requests, in Ollama's form; -1 is for ever."""

    @property
    def keep_alive_value(self) -> int | str:
        """As Ollama's API takes it: a number without a unit only as a number."""
        return int(self.keep_alive) if self.keep_alive.lstrip("-").isdigit() else self.keep_alive

    def matches(self, digest: str) -> bool:
        """Whether Ollama's `digest` is that of this model."""
        return not self.digest or bare(self.digest) == bare(digest)


class _Document(BaseModel):
    version: Literal[1]
    models: list[Model]
    problems: dict[str, str] = {}


def bare(digest: str) -> str:
    return digest.removeprefix("sha256:")


class Catalog:
    """The file, read again when it changes. A file that cannot be read keeps what was there before, and is named once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self.models: list[Model] = []
        self.problems: dict[str, str] = {}
        """Model to why it is not here, or only an older version of it."""
        self.present = False
        """Whether it is known which models there should be."""

    def refresh(self) -> None:
        try:
            stat = self._path.stat()
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return
            text = self._path.read_bytes()
        except OSError:
            return
        self._seen = seen
        try:
            document = _Document.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            log.error("%s: %s: got %s, want a catalog of version 1; run the writer again", self._path, where, first["msg"].lower())
            return
        self.models, self.problems = document.models, document.problems
        self.present = True
        log.info("catalog: %s", ", ".join(model.name for model in self.models) or "no model")
