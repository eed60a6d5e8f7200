"""A made-up hub of models on loopback, which keeps large files on another host, as huggingface.co does.

Source of the answers: huggingface_hub, HfApi.list_repo_tree and file_download, and huggingface.co's own answers to them.
"""

import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from devcluster.pki import Authority
from model_sync.files import git_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 256
"""Files from this size on are on the other host, by their SHA-256."""


@dataclass
class Hub:
    """One repository. Change the fields between requests."""

    files: dict[str, bytes]
    commit: str = COMMIT
    """What it has, whatever is asked for."""
    lies: dict[str, bytes] = field(default_factory=dict)
    """Path to what is sent instead of the listed content."""
    token: str = ""
    """Without which the hub itself answers 401."""
    cut_after: int = 0
    """Each connection for a large file ends after so many bytes."""
    addresses: tuple[str, str] = ("", "")
    """Of the hub, and of the host with the large files."""
    requests: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    """Path to the bytes of it that were sent."""
    credentials: dict[str, set[str | None]] = field(default_factory=lambda: {"hub": set(), "store": set()})
    """What each host was shown."""

    def listing(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"type": "directory", "path": "sub", "oid": "0" * 40, "size": 0}]
        for path, content in self.files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_name(content)}
            if len(content) >= LARGE_BYTES:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            found.append(entry)
        return found


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    role: str

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        hub.credentials[self.role].add(self.headers.get("Authorization"))
        if self.role == "store":
            self._content(path.removeprefix("/"))
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer(401, b"")
        elif path == f"/api/models/team/model/revision/{COMMIT}":
            self._answer(200, json.dumps({"sha": hub.commit}).encode())
        elif path == f"/api/models/team/model/tree/{COMMIT}":
            self._answer(200, json.dumps(hub.listing()).encode())
        elif (name := path.removeprefix(f"/team/model/resolve/{COMMIT}/")) in hub.files:
            if len(hub.files[name]) >= LARGE_BYTES:
                self._answer(302, b"", Location=f"{hub.addresses[1]}/{name}")
            else:
                self._content(name)
        else:
            self._answer(404, b"")

    def _content(self, name: str) -> None:
        hub = self.hub
        content = hub.lies.get(name, hub.files[name])
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        part = content[start : start + hub.cut_after] if hub.cut_after else content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(part)
        hub.sent[name] = hub.sent.get(name, 0) + len(part)
        self.close_connection = True

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def serving(files: dict[str, bytes], authority: Authority) -> Iterator[Hub]:
    """Both hosts over TLS."""
    hub = Hub(files)
    certificate, key = authority.issue("hub", "server", names=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listeners = [
        ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "role": role})) for role in ("hub", "store")
    ]
    threads: list[threading.Thread] = []
    for listener in listeners:
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        listener.handle_error = lambda request, client_address: None
        threads.append(threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True))
        threads[-1].start()
    first, second = (f"127.0.0.1:{listener.server_port}" for listener in listeners)
    hub.addresses = (first, f"https://{second}")
    try:
        yield hub
    finally:
        for listener, thread in zip(listeners, threads, strict=True):
            listener.shutdown()
            thread.join()
            listener.server_close()
