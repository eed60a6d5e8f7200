"""Sources that ask who is there, on loopback and under a private authority: a file server, a token server, and a real registry."""

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from devcluster.pki import Authority

SERVICE, ISSUER = "models", "token-server"


@dataclass
class Server:
    """Change the fields between requests."""

    address: str
    content: bytes = b""
    wants: str | None = None
    """The Authorization header without which it answers 401."""
    refusal: int = 403
    """What it answers to another one."""
    moved_to: str = ""
    """Answers with a redirect to there."""
    signer: tuple[Path, Path] | None = None
    """Certificate and key of a token server: it gives out tokens for the scope that it is asked for."""
    lifetime_s: int = 300
    """Of a token; the registry grants a minute more."""
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    """Path with query, and Authorization, of each request."""
    peers: set[int] = field(default_factory=set)
    """Ports that the connections came from."""
    heads: list[str] = field(default_factory=list)
    """Names of the headers of all requests, in small letters."""

    @property
    def url(self) -> str:
        return f"https://{self.address}/model.gguf"


class _Handler(BaseHTTPRequestHandler):
    server_: Server

    def do_GET(self) -> None:
        server, given = self.server_, self.headers.get("Authorization")
        server.seen.append((self.path, given))
        server.peers.add(self.client_address[1])
        server.heads += [name.lower() for name in self.headers]
        if server.wants is not None and given != server.wants:
            self.send_response(401 if given is None else server.refusal)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif server.moved_to:
            self.send_response(307)
            self.send_header("Location", server.moved_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            content = self._token().encode() if server.signer else server.content
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _token(self) -> str:
        server, query = self.server_, parse_qs(urlsplit(self.path).query)
        assert server.signer is not None
        return json.dumps({"token": token(*server.signer, query.get("scope", [""])[0], server.lifetime_s)})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def serving(authority: Authority, content: bytes = b"", names: tuple[str, ...] = ("127.0.0.1", "localhost")) -> Iterator[Server]:
    server = Server("", content)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": server}))
    certificate, key = authority.issue(f"server-{names[0]}", "server", names=[*names])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    # A client that does not trust us hangs up during the handshake; the default handler would print that.
    listener.handle_error = lambda request, client_address: None
    server.address = f"127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def _part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def token(certificate: Path, key: Path, scope: str, lifetime_s: int = 300) -> str:
    """As the registry's specification has it: a JWT (ES256) with the signer's certificate in it. `scope` is `TYPE:NAME:ACTION,…`, or empty."""
    der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
    header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "sub": "test",
        "aud": SERVICE,
        "iat": now,
        "nbf": now - 300,
        "exp": now + lifetime_s,
        "jti": "1",
        "access": [{"type": kind, "name": name, "actions": actions.split(",")}] if scope else [],
    }
    text = f"{_part(json.dumps(header).encode())}.{_part(json.dumps(claims).encode())}"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(private.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{_part(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def token_auth(realm: str, signer: Path) -> dict[str, Any]:
    """`auth` of a registry that lets in who has a token of the realm's."""
    return {"token": {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(signer)}}
