"""A real registry that asks for a login, by HTTP Basic or by tokens of a server of its own, with a certificate of its own authority."""

import base64
import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from devcluster import host
from devcluster.pki import Authority
from tests.service import private
from tests.service.processes import free_port

USER, PASSWORD = "puller", "a-password-of-tests"
_HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuueA.5djcjiTIZGfiZPkCs0FT7mnizswe\n"
"""bcrypt of PASSWORD, the one form that the registry takes."""


@dataclass
class PrivateRegistry:
    """`address` is host and port. With `directory` of an open registry it serves what was pushed there."""

    address: str
    authority: Path | None
    """PEM of what signed its certificate; None when it speaks plain HTTP."""
    tokens: private.Server | None = None
    """Its token server."""

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
        bundle = str(authority.certificate_path)
        auth = {"token": {"realm": realm, "service": private.SERVICE, "issuer": private.ISSUER, "rootcertbundle": bundle}}
        tls = authority.issue("registry", "registry", names=["127.0.0.1", "localhost"])
        with serving(work, made, directory, None if flow == "basic" else auth, tls):
            yield made


@contextmanager
def serving(
    work: Path, made: PrivateRegistry, directory: Path, auth: dict[str, Any] | None, tls: tuple[Path, Path] | None
) -> Iterator[None]:
    """The registry's process at `made.address`; with HTTP Basic when `auth` is None."""
    (work / "htpasswd").write_text(_HTPASSWD)
    http: dict[str, Any] = {"addr": made.address}
    if tls is not None:
        http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    storage = {"filesystem": {"rootdirectory": str(directory)}}
    auth = auth or {"htpasswd": {"realm": "private", "path": str(work / "htpasswd")}}
    config, log = work / "private.yaml", work / "private.log"
    config.write_text(yaml.safe_dump({"version": 0.1, "storage": storage, "http": http, "auth": auth}))
    # Nothing of ours: REGISTRY_* would override its configuration.
    environment = {"OTEL_TRACES_EXPORTER": "none"}
    argv = [str(host.registry_binary()), "serve", str(config)]
    with log.open("wb") as output, subprocess.Popen(argv, env=environment, stdout=output, stderr=output) as process:
        try:
            _wait(process, made, log)
            yield
        finally:
            process.terminate()


def _wait(process: "subprocess.Popen[bytes]", made: PrivateRegistry, log: Path, timeout_s: float = 30) -> None:
    verify = ssl.create_default_context(cafile=str(made.authority)) if made.authority else True
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            url = f"http{'s' if made.authority else ''}://{made.address}/v2/"
            assert httpx.get(url, verify=verify, timeout=2, trust_env=False).status_code == 401
            return
        except httpx.HTTPError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
