"""A real registry that asks for a login, by HTTP Basic or by tokens of a server of its own, with a certificate of its own authority."""

import base64
import datetime
import ipaddress
import json
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from devcluster import host
from tests.service.processes import free_port

USER, PASSWORD = "puller", "a-password-of-tests"
_HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuueA.5djcjiTIZGfiZPkCs0FT7mnizswe\n"
"""bcrypt of PASSWORD, the one form that the registry takes."""
_SERVICE, _ISSUER = "private-registry", "token-server"


@dataclass
class PrivateRegistry:
    """`address` is host and port. With `directory` of an open registry it serves what was pushed there."""

    address: str
    authority: Path | None
    """PEM of what signed its certificate; None when it speaks plain HTTP."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Scope and `Authorization` of what its token server was asked."""

    def auth(self, password: str = PASSWORD) -> str:
        """A dockerconfigjson for it."""
        return json.dumps({"auths": {self.address: {"username": USER, "password": password}}})


def _certificate(directory: Path) -> tuple[Path, Path, ec.EllipticCurvePrivateKey]:
    """A certificate for loopback that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "private-registry")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = directory / "registry.crt", directory / "registry.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(pem)
    return certificate, private, key


def _part(value: bytes | dict[str, Any]) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _token(certificate: Path, key: ec.EllipticCurvePrivateKey, scope: str) -> str:
    """A signed grant as registries take it. Source: distribution, docs of the token authentication specification."""
    der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    access = [{"type": kind, "name": name, "actions": actions.split(",")}] if scope else []
    now = int(time.time())
    claims = {"iss": _ISSUER, "sub": USER, "aud": _SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now, "jti": "1", "access": access}
    header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
    signed = f"{_part(header)}.{_part(claims)}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_part(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@contextmanager
def _token_server(made: PrivateRegistry, certificate: Path, private: Path, key: ec.EllipticCurvePrivateKey) -> Iterator[str]:
    wanted = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            scope = parse_qs(urlsplit(self.path).query).get("scope", [""])[0]
            made.asked.append((scope, self.headers.get("Authorization")))
            good = self.headers.get("Authorization") == wanted
            body = json.dumps({"token": _token(certificate, key, scope)} if good else {"details": "no"}).encode()
            self.send_response(200 if good else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, private)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            # By a name: the tools take no token server under a private address.
            yield f"https://localhost:{server.server_address[1]}/token"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def private_registry(work: Path, directory: Path, flow: str) -> Iterator[PrivateRegistry]:
    """`basic` or `token`, over TLS on loopback, serving what an open registry has in `directory`."""
    certificate, private, key = _certificate(work)
    made = PrivateRegistry(f"127.0.0.1:{free_port()}", certificate)
    with _token_server(made, certificate, private, key) as realm:
        auth: dict[str, Any] = {"token": {"realm": realm, "service": _SERVICE, "issuer": _ISSUER, "rootcertbundle": str(certificate)}}
        with serving(work, made, directory, None if flow == "basic" else auth, (certificate, private)):
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
    environment = os.environ | {"OTEL_TRACES_EXPORTER": "none"}
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
