"""HTTP connections whose handshake and headers have an end: a socket's own timeout is for each byte, and a source may send one a minute."""

import http.client
import io
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from model_sync.proxy import Proxy


class _InTime(http.client.HTTPConnection):
    """Cuts the connection when the handshake, or the head of an answer, takes longer than `timeout` seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._own: socket.socket | None = None
        """A second handle of the connection: TLS takes the first one away."""
        self._is_cut = False
        self._timer: threading.Timer | None = None
        self._create_connection = self._connected

    def _connected(self, *arguments: Any, **options: Any) -> socket.socket:
        made = socket.create_connection(*arguments, **options)
        self._own = made.dup()
        # From here on: each address of a host may take its own time to connect.
        self._start()
        return made

    def connect(self) -> None:
        try:
            super().connect()
        finally:
            self._stop()
        self._refuse_what_was_cut()

    def getresponse(self) -> HTTPResponse:
        self._start()
        try:
            response = super().getresponse()
        finally:
            self._stop()
            self._forget()
        # The head of an answer may end with its connection, for all that http.client says.
        self._refuse_what_was_cut()
        return response

    def close(self) -> None:
        self._forget()
        super().close()

    def _start(self) -> None:
        self._timer = threading.Timer(self.timeout or 0, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _refuse_what_was_cut(self) -> None:
        if self._is_cut:
            raise TimeoutError(f"no whole answer in {self.timeout:g} s")

    def _cut(self) -> None:
        self._is_cut = True
        if self._own is not None:
            with suppress(OSError):
                self._own.shutdown(socket.SHUT_RDWR)

    def _forget(self) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None


class _InTimeTls(_InTime, http.client.HTTPSConnection):
    pass


class ProxyError(OSError):
    """A request that found no way through the proxy."""

    def __init__(self, server: str, target: str, reason: object) -> None:
        refused = re.match(r"Tunnel connection failed: (\d{3})", str(reason))
        self.status = int(refused[1]) if refused else None
        """With which the proxy refused to connect us, if that was it."""
        self.target = target
        got = f"status {self.status}" if refused else str(reason) or type(reason).__name__
        super().__init__(f"{got} through the proxy {server}")


@dataclass(frozen=True)
class Way:
    """How requests reach their servers. Whatever the environment says of proxies does not count."""

    proxy: Proxy | None = None
    authorization: str | None = field(default=None, repr=False)
    """The proxy's own."""

    def open(self, request: urllib.request.Request, do_open: Callable[[], HTTPResponse]) -> HTTPResponse:
        """Raises ProxyError for what goes wrong between us and a server behind the proxy; that server's certificate is no matter of it."""
        if self.proxy is None or not self.proxy.via(request.full_url):
            return do_open()
        request.set_proxy(self.proxy.server, "http")
        if self.authorization:
            # urllib gives it to the proxy alone, also where it then speaks to the server; and a redirect starts without it.
            request.add_unredirected_header("Proxy-Authorization", self.authorization)
        try:
            return do_open()
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise
            raise ProxyError(self.proxy.server, server_of(request.full_url), reason) from None


class Http(urllib.request.HTTPHandler):
    def __init__(self, way: Way) -> None:
        super().__init__()
        self._way = way

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self._way.open(req, lambda: self.do_open(_InTime, req))


class Https(urllib.request.AbstractHTTPHandler):
    """The base for TLS would read all certificates of the machine at once, also where nothing is asked by TLS."""

    def __init__(self, way: Way, trusted: Callable[[], ssl.SSLContext]) -> None:
        super().__init__()
        self._way, self._trusted = way, trusted

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        trusted = self._trusted()
        return self._way.open(req, lambda: self.do_open(_InTimeTls, req, context=trusted))

    https_request = urllib.request.AbstractHTTPHandler.do_request_


class Redirects(urllib.request.HTTPRedirectHandler):
    """Ten at most, as the base has it; none of their bodies is read, and no credential goes to another server."""

    def http_error_302(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and (following.type, server_of(following.full_url)) != (req.type, server_of(req.full_url)):
            following.remove_header("Authorization")
        return following


def read_all(file: io.BufferedIOBase, limit: int, timeout_s: float) -> bytes:
    """A small document, all of it in `timeout_s`. Raises OSError when it is longer or slower."""
    found, deadline = bytearray(), time.monotonic() + timeout_s
    while block := file.read1(limit):
        found += block
        if len(found) > limit:
            raise OSError(f"more than {limit} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(found)} bytes in {timeout_s:g} s")
    return bytes(found)


_PORTS = {"https": 443, "http": 80}


def server_of(url: str) -> str:
    """`host`, or `host:port` where the port is not the scheme's own. Raises ValueError on an address that is none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, _PORTS.get(parts.scheme)) else f"{host}:{parts.port}"
