"""A real registry that asks for a login, by HTTP Basic or by tokens of a server of its own, with a certificate of its own authority."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.pki import Authority
from tests.service import private, registries
from tests.service.processes import free_port

USER, PASSWORD, LATER_PASSWORD = "puller", "a-password-of-tests", "the-next-password-of-tests"
_BCRYPT = {
    PASSWORD: "$2y$05$abcdefghijklmnopqrstuueA.5djcjiTIZGfiZPkCs0FT7mnizswe",
    LATER_PASSWORD: "$2y$05$abcdefghijklmnopqrstuuaE6rp8ztA5TkVQNUxnghRyxUSwRan/O",
}
"""The one form that the registry takes."""


@dataclass
class PrivateRegistry:
    """`address` is host and port. With `directory` of an open registry it serves what was pushed there."""

    address: str
    authority: Path | None
    """PEM of what signed its certificate; None when it speaks plain HTTP."""
    tokens: private.Server | None = None
    """Its token server."""
    passwords: Path | None = None
    """Its file of who may come in, by HTTP Basic; it reads a changed one."""

    def change_password(self, password: str) -> None:
        """The one of before opens nothing any more."""
        assert self.passwords is not None
        _admit(self.passwords, password)

    def auth(self, password: str = PASSWORD) -> str:
        """A dockerconfigjson for it."""
        return json.dumps({"auths": {self.address: {"username": USER, "password": password}}})


@contextmanager
def private_registry(work: Path, directory: Path, flow: str) -> Iterator[PrivateRegistry]:
    """`basic` or `token`, over TLS on loopback, serving what an open registry has in `directory`."""
    authority = Authority(work / "private", "authority")
    with private.serving(authority) as tokens:
        tokens.wants = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        tokens.refusal = 401
        tokens.signer = authority.issue("signer", "signer")
        made = PrivateRegistry(f"127.0.0.1:{free_port()}", authority.certificate_path, tokens)
        # By a name: the tools take no token server under a private address.
        realm = f"https://localhost:{tokens.address.rpartition(':')[2]}/token"
        auth = _basic(work) if flow == "basic" else private.token_auth(realm, authority.certificate_path)
        tls = authority.issue("registry", "registry", names=["127.0.0.1", "localhost"])
        with registries.serving(work, made.address, directory=directory, auth=auth, tls=tls, authority=authority.certificate_path):
            yield made


def _admit(passwords: Path, password: str) -> None:
    passwords.write_text(f"{USER}:{_BCRYPT[password]}\n")


def _basic(work: Path) -> dict[str, Any]:
    _admit(work / "htpasswd", PASSWORD)
    return {"htpasswd": {"realm": "private", "path": str(work / "htpasswd")}}


@contextmanager
def behind_password(work: Path, made: PrivateRegistry, directory: Path) -> Iterator[None]:
    """`made` by HTTP Basic and plain HTTP, serving what an open registry has in `directory`."""
    with registries.serving(work, made.address, directory=directory, auth=_basic(work)):
        made.passwords = work / "htpasswd"
        yield
