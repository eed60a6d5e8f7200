"""HTTP sources of models that behave as badly as real ones do, on loopback."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx


@dataclass
class Origin:
    """One file at any path. Change the fields between requests."""

    content: bytes
    ranges: bool = True
    length: bool = True
    """Says how long the content is."""
    failures: int = 0
    """So many requests get `failure_status`."""
    failure_status: int = 500
    cut_after: int | None = None
    """Closes each connection after so many bytes."""
    delay_s: float = 0
    """Before each block of 64 KiB."""
    sent: int = 0
    requests: list[str] = field(default_factory=list)
    """The ranges that were asked for; empty for all."""
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    origin: Origin

    def do_GET(self) -> None:
        origin = self.origin
        asked = self.headers.get("Range", "")
        origin.requests.append(asked)
        if origin.failures > 0:
            origin.failures -= 1
            self.send_error(origin.failure_status)
            return
        found = re.fullmatch(r"bytes=(\d+)-", asked)
        start = int(found[1]) if found and origin.ranges else 0
        if start and start >= len(origin.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(origin.content) - 1}/{len(origin.content)}")
        if origin.length:
            self.send_header("Content-Length", str(len(origin.content) - start))
        self.end_headers()
        self._send(origin.content[start:])

    def _send(self, content: bytes) -> None:
        origin = self.origin
        content = content if origin.cut_after is None else content[: origin.cut_after]
        try:
            for index in range(0, len(content), 1 << 16):
                time.sleep(origin.delay_s)
                block = content[index : index + (1 << 16)]
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
    server = ThreadingHTTPServer((address, 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    origin.url = f"http://{address}:{server.server_port}/model.gguf"
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


def upload(client: httpx.Client, registry: str, repository: str, tag: str, store: Path, manifest: Path) -> None:
    base = f"{registry}/v2/{repository}"
    document = (store / manifest).read_bytes()
    for digest in dict.fromkeys(re.findall(r"sha256:[0-9a-f]{64}", document.decode())):
        location = client.post(f"{base}/blobs/uploads/").headers["location"]
        blob = (store / "blobs" / digest.replace(":", "-")).read_bytes()
        done = client.put(f"{location}&digest={digest}", content=blob, headers={"Content-Type": "application/octet-stream"})
        assert done.status_code == 201, done.text
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    done = client.put(f"{base}/manifests/{tag}", content=document, headers={"Content-Type": kind})
    assert done.status_code == 201, done.text
