"""Who the verifier is at a registry, and whose certificates it takes there.

Source of the form of logins: Kubernetes documentation, "Pull an Image from a Private Registry".
"""

import base64
import json
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
"""Names of one registry."""


class AccessError(Exception):
    """A file is not what it should be; the message shows nothing of it."""


class Logins:
    """The logins of a file, read whenever one is asked for: a new password needs no restart. Without a file there are none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def basic(self, host: str, repository: str) -> str | None:
        """`Authorization` for `host/repository`, from the entry with the longest place above it. Raises AccessError."""
        name = f"{host}/{repository}/"
        found = {place: entry for place, entry in self.read().items() if _is_above(place, host, name)}
        return found[max(found, key=len)] if found else None

    def read(self) -> Mapping[str, str]:
        """Place (host, with a port or path) to `Authorization`. Raises AccessError."""
        if self._path is None:
            return {}
        try:
            entries: dict[str, Any] = json.loads(self._path.read_text())["auths"]
            return {re.sub(r"^https?://|/(v[12]/?)?$", "", place): _header(entry) for place, entry in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AccessError(f"{self._path}: got {type(error).__name__}, want a dockerconfigjson; mount the Secret") from None


def authorities(path: Path | None) -> ssl.SSLContext:
    """What a registry's certificate is checked with: the public authorities, and those of the file. Raises AccessError."""
    context = ssl.create_default_context()
    if path is not None:
        try:
            context.load_verify_locations(path)
        except OSError as error:
            raise AccessError(f"{path}: got {type(error).__name__}, want certificates in PEM; mount the ConfigMap") from None
    return context


def _header(entry: Mapping[str, str]) -> str:
    auth = entry.get("auth") or base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
    return f"Basic {auth}"


def _is_above(place: str, host: str, name: str) -> bool:
    own, _, path = place.partition("/")
    same = own == host or (own in _HUB and host in _HUB)
    return same and (not path or name.startswith(f"{host}/{path}/"))
