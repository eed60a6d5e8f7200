"""What a TLS handshake costs our API server, beside nginx with the same certificate. Writes bench/results/tls.json.

A client connects, asks for /health and leaves, again and again, with TLS and without. What TLS adds to the server's CPU is the handshake's
price: tickets of earlier handshakes are not used. Loopback only, three minutes, beside nothing else:
    python -m bench.tls
A run with few connections, to see that it works, prints its figures and writes nothing:
    python -m bench.tls small
"""

import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.conditions import beside, keep
from bench.processes import cpu_s, end_with_us, started
from devcluster import packages
from infra.preparation.certificates import api_server_tls
from tests.service.processes import ROOT, free_port

AIM = 1000
"""New connections a second that one core of ours has to bear: a thousand agents may begin anew at once."""
AT_ONCE = 8
NAME = "models.example.com"
KINDS = ("plain", "ecdsa", "rsa")
"""Without TLS, and with a key on P-256, as our own certificates and those of cert-manager have it, or of 2048 bits of RSA."""
_START_S = 30
_REQUEST = f"GET /health HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()


@dataclass(frozen=True)
class Sizes:
    """How much a run does."""

    rounds: int
    """The servers take turns, so that both see the same machine; the median of the rounds counts."""
    connections: int
    """Of each kind, in each round."""


FULL = Sizes(rounds=5, connections=2000)
SMALL = Sizes(rounds=2, connections=200)


@dataclass(frozen=True)
class Running:
    """One server with one kind of connection."""

    name: str
    kind: str
    port: int
    pid: int
    trusts: ssl.SSLContext | None

    def once(self) -> bool:
        """Whether a new connection got its answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain:
                if self.trusts is None:
                    return _answered(plain)
                with self.trusts.wrap_socket(plain, server_hostname=NAME) as secured:
                    return _answered(secured)
        except OSError:
            return False


def _answered(connection: socket.socket) -> bool:
    connection.sendall(_REQUEST)
    return connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def write_certificate(kind: str, directory: Path) -> ssl.SSLContext:
    """Certificate and key as a Secret has them. Returns what a client trusts."""
    directory.mkdir()
    if kind == "ecdsa":
        made = api_server_tls([NAME])
        parts = {"tls.crt": made["certificate"], "tls.key": made["privateKey"], "ca.crt": made["authority"]}
    else:
        key, like = rsa.generate_private_key(65537, 2048), x509.load_pem_x509_certificate(api_server_tls([NAME])["certificate"].encode())
        builder = x509.CertificateBuilder().subject_name(like.subject).issuer_name(like.subject).public_key(key.public_key())
        builder = builder.serial_number(1).not_valid_before(like.not_valid_before_utc).not_valid_after(like.not_valid_after_utc)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        parts = {"tls.crt": certificate, "tls.key": key.private_bytes(*form).decode(), "ca.crt": certificate}
    for name, text in parts.items():
        (directory / name).write_text(text)
    return ssl.create_default_context(cafile=directory / "ca.crt")


def _ours(directory: Path, port: int, tls: Path | None) -> tuple[list[str], Mapping[str, str]]:
    (directory / "keys").write_text(json.dumps({"a": {"hash": "0" * 64}}))
    settings = {"HOST": "127.0.0.1", "PORT": port, "METRICS_PORT": free_port(), "KEYS_FILE": directory / "keys", "DRAIN_DELAY_S": 0}
    settings |= {"ROUTES": json.dumps({"a": {"url": f"http://127.0.0.1:{free_port()}"}})}
    settings |= {"TLS_DIR": tls, "TLS_NAMES": NAME} if tls else {}
    return [sys.executable, "-m", "api_server"], {f"API_SERVER_{name}": str(value) for name, value in settings.items()}


def _nginx(directory: Path, port: int, tls: Path | None) -> tuple[list[str], Mapping[str, str]]:
    temporary = " ".join(f"{each}_temp_path {directory}/{each};" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    secured = f"ssl_certificate {tls}/tls.crt; ssl_certificate_key {tls}/tls.key; ssl_protocols TLSv1.2 TLSv1.3;" if tls else ""
    (directory / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log stderr; events {{ worker_connections 1024; }}\n"
        f"http {{ {temporary} access_log {directory}/access.log; server {{ listen 127.0.0.1:{port}{' ssl' if tls else ''} backlog=1024;\n"
        f"{secured} location / {{ return 200 '{{}}'; }} }} }}\n"
    )
    return [str(packages.nginx()), "-p", str(directory), "-e", "stderr", "-c", "nginx.conf"], {}


SERVERS = {"api_server": _ours, "nginx": _nginx}


@contextmanager
def running(name: str, kind: str, work: Path, trusts: ssl.SSLContext | None) -> Iterator[Running]:
    """Until the block ends. Raises SystemExit when it does not come up."""
    directory, port = work / f"{name}-{kind}", free_port()
    directory.mkdir()
    argv, env = SERVERS[name](directory, port, work / kind if trusts else None)
    with started(argv, {"PATH": os.environ["PATH"], "HOME": str(directory), **env}, directory, cwd=ROOT) as process:
        server, deadline = Running(name, kind, port, process.pid, trusts), time.monotonic() + _START_S
        while not server.once():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name}: got no answer, want one; it said:\n{(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield server


def milliseconds(server: Running, count: int) -> float:
    """CPU of the server for one connection, AT_ONCE at a time. Raises SystemExit when one gets no answer."""
    before = cpu_s(server.pid)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answered = sum(pool.map(lambda _: server.once(), range(count)))
    if answered < count:
        raise SystemExit(f"{server.name}, {server.kind}: got {answered} answers, want {count}; look at its log")
    return 1000 * (cpu_s(server.pid) - before) / count


def measured(sizes: Sizes, work: Path) -> dict[str, Any]:
    """For each server, CPU milliseconds a connection, what TLS adds to them, and how many such handshakes one core bears a second."""
    trusts = {kind: write_certificate(kind, work / kind) if kind != "plain" else None for kind in KINDS}
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(running(name, kind, work, trusts[kind])) for kind in KINDS for name in SERVERS]
        for turn in range(sizes.rounds):
            print(f"tls: round {turn + 1} of {sizes.rounds}", file=sys.stderr, flush=True)
            for server in servers:
                found.setdefault((server.name, server.kind), []).append(milliseconds(server, sizes.connections))
    results: dict[str, Any] = {}
    for name in SERVERS:
        median = {kind: statistics.median(found[name, kind]) for kind in KINDS}
        added = {kind: median[kind] - median["plain"] for kind in KINDS if kind != "plain"}
        results[name] = {
            "connection_ms": {kind: round(each, 3) for kind, each in median.items()},
            "handshake_ms": {kind: round(each, 3) for kind, each in added.items()},
            "connections_a_second_and_core": {kind: round(1000 / each) for kind, each in median.items()},
            "rounds_ms": {kind: [round(each, 3) for each in found[name, kind]] for kind in KINDS},
        }
    return results


def main(arguments: Sequence[str]) -> int:
    sizes = SMALL if list(arguments) == ["small"] else FULL
    end_with_us()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        results = measured(sizes, Path(directory))
    said = subprocess.run([str(packages.nginx()), "-v"], capture_output=True, text=True, check=True).stderr
    versions = {"aiohttp": metadata.version("aiohttp"), "openssl": ssl.OPENSSL_VERSION, "nginx": said.strip().partition("/")[2]}
    reached = results["api_server"]["connections_a_second_and_core"]["ecdsa"]
    ratio = {kind: round(results["api_server"]["handshake_ms"][kind] / results["nginx"]["handshake_ms"][kind], 2) for kind in KINDS[1:]}
    record = beside("python -m bench.tls", load_before, versions) | {
        "sizes": {**vars(sizes), "at_once": AT_ONCE},
        "results": results,
        "handshake_as_a_multiple_of_nginx": ratio,
        "aim": {"connections_a_second_and_core": AIM, "met": reached >= AIM},
    }
    keep("tls", record, whole=sizes is FULL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
