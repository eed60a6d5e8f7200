"""Where a model's bytes come from: a file or an HTTP server, which is never trusted. Each question costs two requests at most."""

import io
import os
import re
import time
import urllib.error
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urlsplit

from model_sync.access import Access
from model_sync.connections import read_all
from model_sync.patience import ATTEMPTS
from model_sync.store import StoreError

_BACKOFF_S = 0.5
"""Before the second attempt; doubles with each."""
_LONGEST_BACKOFF_S = 30
_LONGEST_WISH_S = 60
"""How long a server may make us wait by its Retry-After."""
_DOCUMENT_BYTES = 4 << 20
_PASSING_STATUSES = (408, 425, 429)
_NUMBER = r"[0-9]{1,18}"
_RANGE = re.compile(rf"bytes ({_NUMBER})-{_NUMBER}/({_NUMBER}|\*)")


class SourceError(Exception):
    """A source that does not deliver now; another run may succeed."""


@dataclass(frozen=True)
class Stream:
    file: io.BufferedIOBase
    start: int
    """Offset of its first byte: 0 when the server ignored the range."""
    total: int | None
    """Bytes of the whole content, if the source says so."""


@dataclass(frozen=True)
class Source:
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    access: Access = field(default_factory=Access)
    repository: str = ""
    """Of a registry, for its tokens."""

    def open(self, offset: int = 0) -> Stream:
        """The content from `offset` on. Raises StoreError when another attempt cannot help, OSError or HTTPException when it may."""
        if self.url.startswith("file://"):
            return self._file(offset)
        response = self._request(offset)
        if response is None:
            response = self._request(0)
        if response is None:
            raise StoreError(f"{self.url}: got a part without its place, want the whole content; the server is broken, use another")
        found = _range(response)
        if found is not None:
            return Stream(response, *found)
        length = response.headers.get("Content-Length", "")
        return Stream(response, 0, int(length) if re.fullmatch(_NUMBER, length) else None)

    def _file(self, offset: int) -> Stream:
        path = Path(unquote(urlsplit(self.url).path))
        try:
            file = path.open("rb")
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise StoreError(f"{self.url}: got {error.strerror}, want a file that the writer can read; correct the source") from None
        total = os.fstat(file.fileno()).st_size
        start = min(offset, total)
        file.seek(start)
        return Stream(file, start, total)

    def _request(self, offset: int) -> HTTPResponse | None:
        """None where the server has no such range: what we have is of something else, or the server knows no ranges."""
        headers = self.headers | ({"Range": f"bytes={offset}-"} if offset else {})
        try:
            response = self.access.open(self.url, headers, self.repository)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and offset:
                return None
            if error.code < 500 and error.code not in _PASSING_STATUSES:
                raise StoreError(f"{self.url}: got {reason(error, self.access)}, want the content; correct the source") from None
            raise
        if response.status == 206 and _range(response) is None:
            response.close()
            return None
        return response


def _range(response: HTTPResponse) -> tuple[int, int | None] | None:
    """Start and total of a part; None where the answer is no part, or does not say which."""
    if response.status != 206:
        return None
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (int(found[1]), None if found[2] == "*" else int(found[2])) if found else None


def document(source: Source, attempts: int = ATTEMPTS, limit: int = _DOCUMENT_BYTES) -> bytes:
    """A small document, such as a registry's manifest. Raises StoreError or SourceError."""
    why = "no attempt"
    for failures in range(1, attempts + 1):
        try:
            with closing(source.open().file) as file:
                return read_all(file, limit, source.access.timeout_s)
        except (OSError, HTTPException) as error:
            why = reason(error, source.access)
            if failures < attempts:
                pause(failures, error)
    raise SourceError(f"{source.url}: got {why}, want the document; check the source")


def pause(failures: int, error: Exception) -> None:
    """Before the next attempt; as long as the server wishes, within reason."""
    wish = str(error.headers.get("Retry-After", "")) if isinstance(error, urllib.error.HTTPError) else ""
    wished_s = min(int(wish), _LONGEST_WISH_S) if re.fullmatch(_NUMBER, wish) else 0
    time.sleep(max(wished_s, min(_BACKOFF_S * 2 ** (failures - 1), _LONGEST_BACKOFF_S)))


def reason(error: Exception, access: Access) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}{access.via(error.url)}"
    return str(error) or type(error).__name__
