"""API keys from a mounted Secret: who may come in, and what with."""

import hashlib
import hmac
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from api_server import errors
from api_server.watched import Watched

MIN_LENGTH = 16
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$"
"""It stands in lines of the log and in labels of metrics."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d")

log = logging.getLogger("api_server")


class KeysError(Exception):
    """The file holds no usable keys. The message never holds one either."""


def _end(value: object) -> object:
    """A date is the last day that counts."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
        if found is not None:
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
            return found + timedelta(days=1) if _DATE.fullmatch(str(value)) else found
    except (ValueError, OverflowError):
        pass
    raise ValueError("a date such as 2027-01-31, with or without a time, belongs there")


class Grant(BaseModel):
    """What a key may do, as the file says it."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    """BLAKE2b of the key, 256 bits."""
    owner: str = ""
    """A person or a team, for people who read the file."""
    expires: Annotated[datetime | None, BeforeValidator(_end)] = None
    """From then on the key is refused. UTC where it does not say another zone; a date counts to its end."""
    models: frozenset[str] = frozenset()
    """Ids and aliases that the key sees, by exact name; empty: all."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Of prompts and answers, as servers count them."""
    concurrency: int | None = Field(default=None, ge=1)
    """Requests at once."""
    priority: int = Field(default=0, ge=-10, le=10)
    """Which of the requests that wait are the next: those of the highest."""


@dataclass(frozen=True)
class Key:
    """A key that is known, by its name."""

    name: str
    grant: Grant


_FILE = TypeAdapter(dict[Annotated[str, Field(pattern=_NAME)], Grant])


def read(path: Path) -> dict[bytes, Key]:
    """Digest to key. Raises KeysError."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise KeysError(f"API_SERVER_KEYS_FILE: got {error.strerror} for {path}, want a readable file; mount the Secret there") from None
    except UnicodeDecodeError as error:
        raise KeysError(f"{path}: got a byte at {error.start} that is no UTF-8, want JSON; write the keys again") from None
    return _named(path, text) if text.startswith("{") else _lines(path, text)


def _named(path: Path, text: str) -> dict[bytes, Key]:
    try:
        grants = _FILE.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # Who has mixed up name and key must not find the key in the log.
        where = "a name" if first["loc"][-1:] == ("[key]",) else ".".join(map(str, first["loc"])) or "the file"
        want = "a map of names to hash, owner, expires, models, limits and priority"
        raise KeysError(f"{path}: {where}: got {first['msg'].lower()}, want {want}; correct the setting `apiKeys`") from None
    keys: dict[bytes, Key] = {}
    for name, grant in grants.items():
        other = keys.setdefault(bytes.fromhex(grant.hash), Key(name, grant))
        if other.name != name:
            raise KeysError(f"{path}: {name}.hash: got the hash of {other.name}, want a key for each name; make another one")
    return keys


def _lines(path: Path, text: str) -> dict[bytes, Key]:
    """The old form: keys in plain text, one a line, without names."""
    found = [key for line in text.splitlines() if (key := line.strip())]
    if not found or any(len(key) < MIN_LENGTH for key in found):
        want = f"at least one, each of {MIN_LENGTH} or more characters"
        raise KeysError(f"{path}: got {len(found)} keys, none or one too short, want {want}; write them, one a line")
    log.warning("%s: got lines of keys, the old form, want names and hashes as JSON; they are key-1 to key-%d", path, len(found))
    named = {f"key-{number}": _digest(key.encode()) for number, key in enumerate(found, 1)}
    return {digest: Key(name, Grant(hash=digest.hex())) for name, digest in named.items()}


def _digest(key: bytes) -> bytes:
    """Blake2 is Python's own, and costs a third of a SHA-256 that OpenSSL has to find first."""
    return hashlib.blake2b(key, digest_size=32).digest()


class Keys:
    """The accepted keys; a changed file counts within a second, an unusable one is reported and the old keys stay."""

    def __init__(self, path: Path) -> None:
        self._file = Watched(path)
        self._keys = read(path)

    def _refresh(self) -> None:
        if not self._file.has_changed():
            return
        try:
            self._keys = read(self._file.path)
            log.info("keys reloaded: %s", ", ".join(key.name for key in self._keys.values()) or "none")
        except KeysError as error:
            log.error("%s; the old keys stay", error)

    def holder(self, authorizations: Sequence[str], api_keys: Sequence[str]) -> Key:
        """The key that the headers `Authorization: Bearer`, or Anthropic's `x-api-key`, carry. Takes the same time for every wrong one.
        Two headers of one name carry none: another reader may take the other one. Raises ApiError 401, which says that a key has expired
        to nobody but who has it."""
        self._refresh()
        scheme, _, key = authorizations[0].partition(" ") if authorizations else ("bearer", "", api_keys[0] if api_keys else "")
        # The bytes as they came: aiohttp keeps what is no UTF-8 as lone surrogates.
        offered = _digest(key.strip().encode(errors="surrogateescape"))
        found = False
        for digest in self._keys:
            found |= hmac.compare_digest(digest, offered)
        if not found or scheme.lower() != "bearer" or len(authorizations) > 1 or len(api_keys) > 1:
            raise errors.unauthorized()
        holder = self._keys[offered]
        if (expires := holder.grant.expires) is not None and datetime.now(UTC) >= expires:
            raise errors.unauthorized("a key that has expired")
        return holder
