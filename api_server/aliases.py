"""Names of the team's own for models. An alias is pointed elsewhere without a restart, and a share of conversations goes ahead."""

import hashlib
import logging
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from api_server.watched import Watched

log = logging.getLogger("api_server")


class AliasesError(Exception):
    """The file holds no aliases; the message is `<path>: got X, want Y; do Z`."""


class Alias(BaseModel):
    """What a name stands for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    """Id of a model."""
    next: str = ""
    """Id of the model that gets `share` of the conversations."""
    share: int = Field(default=0, ge=0, le=100)
    """In percent."""

    @property
    def models(self) -> list[str]:
        """Ids of those that get conversations, the one with most of them first."""
        if not self.share or self.model == self.next:
            return [self.model]
        if self.share == 100:
            return [self.next]
        return [self.next, self.model] if self.share > 50 else [self.model, self.next]

    def target(self, conversation: bytes) -> str:
        """The model of a conversation. All of its turns go to one, and on every gateway to the same."""
        if not self.share:
            return self.model
        bucket = int.from_bytes(hashlib.blake2b(conversation, digest_size=4).digest()) % 100
        return self.next if bucket < self.share else self.model


_FILE = TypeAdapter(dict[str, Alias])


def read(path: Path) -> dict[str, Alias]:
    """Alias to what it stands for. Raises AliasesError."""
    try:
        return _FILE.validate_json(path.read_bytes())
    except OSError as error:
        raise AliasesError(f"{path}: got {error.strerror}, want a readable file; mount the ConfigMap there") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise AliasesError(f"{path}: {where}: got {first['msg'].lower()}, want aliases; correct the setting `aliases`") from None


class Aliases:
    """The aliases of now; a changed file counts within a second. One that cannot be read is reported, and the old ones stay."""

    def __init__(self, path: Path | None, models: Collection[str]) -> None:
        self._models = models
        self._file = Watched(path) if path is not None else None
        self._known: dict[str, Alias] = {}
        if path is not None:
            self._known = self._served(read(path))

    def now(self) -> dict[str, Alias]:
        if self._file is not None and self._file.has_changed():
            try:
                self._known = self._served(read(self._file.path))
                log.info("aliases reloaded: %s", ", ".join(f"{name} is {alias.model}" for name, alias in self._known.items()) or "none")
            except AliasesError as error:
                log.error("%s; the old aliases stay", error)
        return self._known

    def _served(self, found: dict[str, Alias]) -> dict[str, Alias]:
        """Those of models that we route. In a rollout that adds a model, the file knows it before this process does."""
        kept: dict[str, Alias] = {}
        for name, alias in found.items():
            unknown = [each for each in (alias.model, alias.next) if each and each not in self._models]
            if not unknown:
                kept[name] = alias
                continue
            log.error("aliases.%s: got %s, want a model of the routes; what it was before stays", name, unknown[0])
            if name in self._known:
                kept[name] = self._known[name]
        return kept
