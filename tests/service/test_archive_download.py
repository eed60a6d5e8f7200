"""An archive from an address: over real TLS, whole or not at all, and no server may keep us waiting."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import archive, download, toolchain
from devcluster.pki import Authority
from tests.archives import TOOL, machine
from tests.service.private import Server, serving


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path / "ca", "ca")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate_path))
    return made


@pytest.fixture
def served(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, str]]:
    """A server with an archive and its digest; the machine that asks is empty."""
    machine(tmp_path / "writer", monkeypatch, full=True)
    file, digest = archive.write(tmp_path / "build")
    machine(tmp_path / "reader", monkeypatch)
    with serving(authority, file.read_bytes()) as server:
        yield server, digest


def refused(spec: str, said: str, reader: Path) -> None:
    with pytest.raises(archive.ArchiveError, match=said) as caught:
        archive.take(spec)
    assert "\n" not in str(caught.value)
    left = [path for path in (reader / "cache").rglob("*") if path.is_file() and path.name not in (".lock", ".in-use")]
    assert left == []


def test_it_is_taken_over_tls(served: tuple[Server, str]) -> None:
    server, digest = served
    archive.take(f"{server.url}@sha256:{digest}")
    assert toolchain.is_intact(toolchain.entry(TOOL))
    asked = len(server.seen)
    archive.take(f"{server.url}@sha256:{digest}")
    assert len(server.seen) == asked, "what is here is not fetched again"


def test_another_content_an_error_or_a_stranger_is_refused(
    served: tuple[Server, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, digest = served
    reader = tmp_path / "reader"
    refused(f"{server.url}@sha256:{'0' * 64}", rf"got sha256:{digest} \(\d+ bytes\) from {server.url}, want sha256:0000", reader)
    server.wants = "Bearer x"
    secret = server.url.replace("https://", "https://user:secret@") + "?token=secret"
    refused(f"{secret}@sha256:{digest}", rf"TOOLS: got 403 from {server.url}, want the file; check the address", reader)
    server.wants, server.moved_to = None, "http://127.0.0.1:9/x"
    refused(f"{server.url}@sha256:{digest}", r"TOOLS: got a redirect to http://127.0.0.1:9/x, want https; give another address", reader)
    server.moved_to = ""
    monkeypatch.delenv("SSL_CERT_FILE")
    refused(f"{server.url}@sha256:{digest}", rf"TOOLS: got .*CERTIFICATE_VERIFY_FAILED.* from {server.url}", reader)
    refused(f"https://127.0.0.1:9/x@sha256:{digest}", r"TOOLS: got .*refused.* from https://127.0.0.1:9/x", reader)


class Slow:
    """A TLS server that announces a megabyte, sends `first`, then a byte `every_s` until `ends` of them."""

    def __init__(self, authority: Authority, every_s: float, ends: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("server", "server", names=["127.0.0.1"]))
        self._socket, self._context, self._every_s, self._ends = socket.create_server(("127.0.0.1", 0)), context, every_s, ends
        self.address = f"https://127.0.0.1:{self._socket.getsockname()[1]}/x"
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with self._context.wrap_socket(connection, server_side=True) as client:
            client.recv(4096)
            try:
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                for _ in range(self._ends):
                    client.sendall(b"x")
                    time.sleep(self._every_s)
            except OSError:
                pass
        self._socket.close()


@pytest.mark.parametrize(
    ("every_s", "ends", "said"),
    [
        (0.1, 1000, r"TOOLS: got \d+ bytes in 1 s from https://127.0.0.1:\d+/x, want more; try again, or give a file"),
        (60.0, 1, r"TOOLS: got .*timed out.* from https://127.0.0.1:\d+/x"),
        (0.0, 3, r"TOOLS: got .* from https://127.0.0.1:\d+/x, want the file; check the address and the network"),
    ],
    ids=["trickles", "falls silent", "breaks off"],
)
def test_a_server_that_does_not_go_on_is_given_up(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, ends: int, said: str
) -> None:
    machine(tmp_path / "reader", monkeypatch)
    monkeypatch.setattr(download, "STALL_S", 1.0)
    slow = Slow(authority, every_s, ends)
    started = time.monotonic()
    refused(f"{slow.address}@sha256:{'0' * 64}", said, tmp_path / "reader")
    assert time.monotonic() - started < 5
