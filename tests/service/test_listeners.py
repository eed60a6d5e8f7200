"""The ports that Prometheus, the kubelet and the cluster's API server ask, against connections that say nothing, or half of something."""

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.preparation.certificates import verifier_tls
from tests.service.processes import Service, free_port, running

HEAD_S = 2.0
Connect = Callable[[], socket.socket]


def _verifier(work: Path) -> dict[str, str]:
    pair = json.loads(verifier_tls("modelfleet"))
    (work / "tls.crt").write_text(pair["certificate"])
    (work / "tls.key").write_text(pair["privateKey"])
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    (work / "cosign.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    files = {"CERTIFICATE_FILE": work / "tls.crt", "KEY_FILE": work / "tls.key", "PUBLIC_KEYS_FILE": work / "cosign.pub"}
    return {f"VERIFIER_{name}": str(value) for name, value in files.items()} | {"VERIFIER_TIMEOUT_S": "2"}


def _activator(_: Path) -> dict[str, str]:
    scales = json.dumps({"ollama": {"most": 1, "idle_s": 60}})
    settings = {"GATEWAYS": "127.0.0.1:9", "STATEFUL_SETS_URL": "http://127.0.0.1:9/statefulsets", "SCALES": scales}
    return {f"ACTIVATOR_{name}": value for name, value in settings.items()}


def _api_server(work: Path) -> dict[str, str]:
    (work / "keys").write_text("a-valid-key-for-tests\n")
    routes = json.dumps({"a": {"url": "http://127.0.0.1:9", "max_in_flight": 1}})
    settings = {"PORT": str(free_port()), "KEYS_FILE": str(work / "keys"), "ROUTES": routes}
    return {f"API_SERVER_{name}": value for name, value in settings.items()}


SERVICES: dict[str, tuple[str, str, str, Callable[[Path], dict[str, str]]]] = {
    "exporter": ("metrics_exporter", "EXPORTER_", "PORT", lambda _: {"EXPORTER_NVML": "false"}),
    "agent": ("ollama_agent", "OLLAMA_AGENT_", "PORT", lambda _: {"OLLAMA_AGENT_CONTROL_PORT": str(free_port())}),
    "agent's control": ("ollama_agent", "OLLAMA_AGENT_", "CONTROL_PORT", lambda _: {"OLLAMA_AGENT_PORT": str(free_port())}),
    "activator": ("api_server.activator", "ACTIVATOR_", "PORT", _activator),
    "API server's metrics": ("api_server", "API_SERVER_", "METRICS_PORT", _api_server),
    "verifier": ("image_verifier", "VERIFIER_", "PORT", _verifier),
}
"""Module, prefix, the variable of the port, and what else it needs."""


@pytest.fixture(params=SERVICES)
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Service, Connect]]:
    module, prefix, variable, others = SERVICES[request.param]
    port = free_port()
    env = {f"{prefix}HOST": "127.0.0.1", f"{prefix}{variable}": str(port), f"{prefix}HEAD_S": str(HEAD_S), **others(tmp_path)}
    with ExitStack() as stack:
        service = stack.enter_context(running(module, port, env, tmp_path / "service.log", ready=""))

        def connect() -> socket.socket:
            raw = socket.create_connection(("127.0.0.1", port), timeout=30)
            if request.param != "verifier":
                return raw
            context = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
            context.check_hostname = False
            return context.wrap_socket(raw)

        deadline = time.monotonic() + 60
        while True:
            try:
                connect().close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, service.log.read_text()
                time.sleep(0.05)
        yield service, connect


def heard(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    found = b""
    try:
        while more := connection.recv(65536):
            found += more
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: ", b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_connection_without_a_whole_head_ends(listener: tuple[Service, Connect], sent: bytes) -> None:
    _, connect = listener
    started = time.monotonic()
    with closing(connect()) as connection:
        connection.sendall(sent)
        answer = heard(connection)
    assert time.monotonic() - started < HEAD_S + 5
    assert answer.startswith(b"HTTP/1.1 404") == (b"nothing" in sent)


def test_what_is_no_request_is_refused_without_a_traceback(listener: tuple[Service, Connect]) -> None:
    service, connect = listener
    for sent, status in (
        (b"HTP/9\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", b"40"),
        (b"DELETE /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"40"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"400"),
        (b"POST /validate HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nConnection: close\r\nContent-Length: 4\r\n\r\nabcd", b"4"),
        (b"POST /validate HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", b"4"),
    ):
        with closing(connect()) as connection:
            connection.sendall(sent)
            assert heard(connection).split(b" ")[1].startswith(status), sent[:60]
    assert "Traceback" not in service.log.read_text(), service.log.read_text()[-3000:]
