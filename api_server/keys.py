"""API keys from a mounted Secret."""

import hashlib
import hmac
import logging
from collections.abc import Sequence
from pathlib import Path

from api_server.watched import Watched

MIN_LENGTH = 16

log = logging.getLogger("api_server")


class KeysError(Exception):
    """The file holds no usable keys. The message never holds one either."""


def read(path: Path) -> list[bytes]:
    """The digest of every key. Raises KeysError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise KeysError(f"API_SERVER_KEYS_FILE: got {error.strerror} for {path}, want a readable file; mount the Secret there") from None
    except UnicodeDecodeError as error:
        raise KeysError(f"{path}: got a byte at {error.start} that is no UTF-8, want text; write the keys again, one a line") from None
    keys = [line for line in lines if line]
    if not keys or any(len(key) < MIN_LENGTH for key in keys):
        want = f"at least one, each of {MIN_LENGTH} or more characters"
        raise KeysError(f"{path}: got {len(keys)} keys, none or one too short, want {want}; write them, one a line")
    return [_digest(key.encode()) for key in keys]


def _digest(key: bytes) -> bytes:
    """Blake2 is Python's own, and costs a third of a SHA-256 that OpenSSL has to find first."""
    return hashlib.blake2b(key, digest_size=32).digest()


class Keys:
    """The accepted keys; a changed file counts within a second, an unusable one is reported and the old keys stay."""

    def __init__(self, path: Path) -> None:
        self._file = Watched(path)
        self._digests = read(path)

    def _refresh(self) -> None:
        if not self._file.has_changed():
            return
        try:
            self._digests = read(self._file.path)
            log.info("keys reloaded: %d", len(self._digests))
        except KeysError as error:
            log.error("%s; the old keys stay", error)

    def owner(self, authorizations: Sequence[str], api_keys: Sequence[str]) -> bytes | None:
        """The digest of the key, if the headers `Authorization: Bearer`, or Anthropic's `x-api-key`, carry one. Takes the same time for
        every wrong one. Two headers of one name carry none: another reader may take the other one."""
        self._refresh()
        scheme, _, key = authorizations[0].partition(" ") if authorizations else ("bearer", "", api_keys[0] if api_keys else "")
        # The bytes as they came: aiohttp keeps what is no UTF-8 as lone surrogates.
        offered = _digest(key.strip().encode(errors="surrogateescape"))
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, offered)
        good = found and scheme.lower() == "bearer" and len(authorizations) <= 1 and len(api_keys) <= 1
        return offered if good else None
