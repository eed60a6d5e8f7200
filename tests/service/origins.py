"""HTTP sources of models that behave as badly as real ones do, on loopback."""

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET, AF_INET6

import httpx


@dataclass
class Origin:
    """One file at any path. Change the fields between requests."""

    content: bytes
    paths: dict[str, bytes] = field(default_factory=dict)
    """What is at these paths instead."""
    ranges: bool = True
    length: bool = True
    """Says how long the content is."""
    failures: int = 0
    """So many requests get `failure_status`."""
    failure_status: int = 500
    cut_after: int | None = None
    """Closes each connection after so many bytes."""
    refusals_after_cut: int = 0
    """So many requests get `failure_status` after a connection was closed like that."""
    delay_s: float = 0
    """Before each block of 64 KiB."""
    drip_bytes: int | None = None
    """So many bytes a block instead of 64 KiB."""
    bare_parts: bool = False
    """Answers everything with 206, and does not say which part."""
    no_range: bool = False
    """Answers everything with 416."""
    slow_head_s: float = 0
    """Before each line of a head that does not end."""
    moved_to: str = ""
    """Redirects there, with a body that does not end."""
    headers: dict[str, str] = field(default_factory=dict)
    """More of them, in every answer."""
    sent: int = 0
    requests: list[str] = field(default_factory=list)
    """The ranges that were asked for; empty for all."""
    heads: list[dict[str, str]] = field(default_factory=list)
    peers: set[int] = field(default_factory=set)
    """Ports that the connections came from."""
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    origin: Origin

    def do_GET(self) -> None:
        origin = self.origin
        asked = self.headers.get("Range", "")
        origin.requests.append(asked)
        origin.heads.append({name.lower(): value for name, value in self.headers.items()})
        origin.peers.add(self.client_address[1])
        if origin.failures > 0:
            origin.failures -= 1
            self._answer(origin.failure_status, {"Content-Length": "0"})
            return
        if origin.no_range:
            self._answer(416, {"Content-Length": "0"})
            return
        if origin.slow_head_s or origin.moved_to:
            self._endless()
            return
        content = origin.paths.get(self.path, origin.content)
        found = re.fullmatch(r"bytes=(\d+)-", asked)
        start = int(found[1]) if found and origin.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start or origin.bare_parts else 200)
        for name, value in origin.headers.items():
            self.send_header(name, value)
        if start and not origin.bare_parts:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if origin.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self._send(content[start:])

    def _answer(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**self.origin.headers, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _endless(self) -> None:
        """A head line by line, or a body block by block, until the client has enough."""
        origin = self.origin
        if origin.moved_to:
            self._answer(302, {"Location": origin.moved_to})
        else:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                time.sleep(origin.slow_head_s)
                block = b"x" * (1 << 16) if origin.moved_to else b"x-more: 1\r\n"
                self.wfile.write(block)
                origin.sent += len(block)
        except OSError:
            pass  # The client is gone.

    def _send(self, content: bytes) -> None:
        origin = self.origin
        if origin.cut_after is not None and len(content) > origin.cut_after:
            content = content[: origin.cut_after]
            origin.failures += origin.refusals_after_cut
        try:
            size = origin.drip_bytes or 1 << 16
            for index in range(0, len(content), size):
                time.sleep(origin.delay_s)
                block = content[index : index + size]
                self.wfile.write(block)
                origin.sent += len(block)
        except OSError:
            pass  # The client is gone.

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def serving(content: bytes, address: str = "127.0.0.1") -> Iterator[Origin]:
    origin = Origin(content)
    handler = type("Handler", (_Handler,), {"origin": origin})
    family = AF_INET6 if ":" in address else AF_INET
    server = type("Server", (ThreadingHTTPServer,), {"address_family": family})((address, 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    origin.url = f"http://{f'[{address}]' if ':' in address else address}:{server.server_port}/model.gguf"
    try:
        yield origin
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def push(address: str, repository: str, tag: str, store: Path, manifest: Path) -> None:
    """Upload one model of a store, as `ollama push` does."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        upload(client, f"http://{address}", repository, tag, store, manifest)


def upload(
    client: httpx.Client,
    registry: str,
    repository: str,
    tag: str,
    store: Path,
    manifest: Path,
    kind: str = "application/vnd.docker.distribution.manifest.v2+json",
) -> None:
    base = f"{registry}/v2/{repository}"
    document = (store / manifest).read_bytes()
    for digest in dict.fromkeys(re.findall(r"sha256:[0-9a-f]{64}", document.decode())):
        location = client.post(f"{base}/blobs/uploads/").headers["location"]
        blob = (store / "blobs" / digest.replace(":", "-")).read_bytes()
        done = client.put(f"{location}&digest={digest}", content=blob, headers={"Content-Type": "application/octet-stream"})
        assert done.status_code == 201, done.text
    done = client.put(f"{base}/manifests/{tag}", content=document, headers={"Content-Type": kind})
    assert done.status_code == 201, done.text
