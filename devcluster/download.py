"""Fetch one large file over HTTPS; a server that stalls is given up, not waited for."""

import re
import time
from pathlib import Path

import httpx

from devcluster.cache import SAY_EVERY_S, say

STALL_S = 30.0
LEAST_BYTES_PER_S = 50_000
"""A download that is slower than this for `STALL_S` would take hours: better to say so."""
LARGEST_BYTES = 4 << 30


class DownloadError(Exception):
    """The message says what came, and what to do."""


def shown(source: str) -> str:
    """An address without what may be a secret of it: login and query. A file as it is."""
    return re.sub(r"^(https?://)[^/@]*@", r"\1", source.partition("?")[0]) if source.startswith(("http://", "https://")) else source


def download(address: str, target: Path) -> None:
    """Write what `address` answers into `target`, and say how far it is. Raises DownloadError, OSError."""
    try:
        headers = {"Accept-Encoding": "identity"}
        client = httpx.Client(headers=headers, follow_redirects=True, timeout=STALL_S, event_hooks={"request": [_only_https]})
        with client, client.stream("GET", address) as answer:
            if answer.status_code != 200:
                raise DownloadError(f"got {answer.status_code} from {shown(address)}, want the file; check the address")
            _receive(answer, shown(address), target)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise DownloadError(f"got {reason} from {shown(address)}, want the file; check the address and the network") from None


def _only_https(request: httpx.Request) -> None:
    if request.url.scheme != "https":
        raise DownloadError(f"got a redirect to {shown(str(request.url))}, want https; give another address")


def _receive(answer: httpx.Response, address: str, target: Path) -> None:
    whole = int(answer.headers.get("content-length", 0))
    got = last = 0
    looked = said = time.monotonic()
    with target.open("wb") as file:
        for chunk in answer.iter_raw():
            file.write(chunk)
            got += len(chunk)
            now = time.monotonic()
            if got > LARGEST_BYTES:
                raise DownloadError(f"got more than {LARGEST_BYTES >> 30} GiB from {address}, want less; check the address")
            if now - looked >= STALL_S:
                if got - last < STALL_S * LEAST_BYTES_PER_S:
                    raise DownloadError(
                        f"got {got - last} bytes in {now - looked:.0f} s from {address}, want more; try again, or give a file"
                    )
                looked, last = now, got
            if now - said >= SAY_EVERY_S / 2:
                said = now
                say(f"download: {got / 1e6:.0f} MB" + (f" of {whole / 1e6:.0f}" if whole else ""))
