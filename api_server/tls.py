"""The certificate from a mounted Secret: what new connections are greeted with, while open ones go on."""

import contextlib
import logging
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_server.watched import Watched

CERTIFICATE, KEY = "tls.crt", "tls.key"
"""Files of a Secret of the type kubernetes.io/tls."""
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_FLIGHTS = 4
"""Of a handshake, both directions of each; TLS 1.3 needs two."""

log = logging.getLogger("api_server")


class TlsError(Exception):
    """The files are nothing that a client would trust; the message is `<path>: got X, want Y; do Z`, and has nothing of the key."""


@dataclass(frozen=True)
class Served:
    """A certificate with its key, as new connections are greeted with it."""

    context: ssl.SSLContext
    not_before: float
    not_after: float
    """Unix times in seconds between which it is valid."""


def load(directory: Path, names: Sequence[str]) -> Served:
    """The certificate that is there now, valid for each of the names. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that begins again and again would cost a signature each time.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    certificate, key = directory / CERTIFICATE, directory / KEY
    try:
        # OpenSSL would not say which of them it cannot read.
        leaf, _ = _BLOCK.search(certificate.read_text(encoding="latin-1")), key.read_bytes()
    except OSError as error:
        got = f"{error.filename}: got {error.strerror}"
        raise TlsError(f"{got}, want a file of a Secret of the type kubernetes.io/tls; mount the Secret there") from None
    if leaf is None:
        raise TlsError(f"{certificate}: got what is no certificate in PEM, want one; renew the Secret")
    try:
        # Without a password it would ask for one on a terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        got = "the key of another certificate" if error.reason == "KEY_VALUES_MISMATCH" else error.reason or "what is no key in PEM"
        raise TlsError(f"{key}: got {got}, want the certificate's own key in PEM, without a password; renew the Secret") from None
    try:
        [found, *_] = [_greeted(context, leaf[0], name) for name in names or [""]]
    except ssl.SSLCertVerificationError as error:
        said = error.verify_message.rstrip(".")
        want = f"one that is valid now, for {', '.join(names)}" if names else "one that is valid now"
        raise TlsError(f"{certificate}: got a certificate that clients refuse ({said}), want {want}; renew it") from None
    except ssl.SSLError as error:
        raise TlsError(f"{certificate}: got {error.reason}, want a certificate for servers; make another one") from None
    return Served(context, *(ssl.cert_time_to_seconds(str(found[each])) for each in ("notBefore", "notAfter")))


def _greeted(context: ssl.SSLContext, leaf: str, name: str) -> dict[str, Any]:
    """What a client learns of the certificate that asks for this name, by a handshake within this process. Only that client's library
    decides what is valid, and whose name it is. Who signed the certificate is not asked: that is between clients and authorities."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = bool(name)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cadata=leaf)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(to_client, to_server, server_hostname=name or None)
    answers = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_FLIGHTS):
        for side in (asks, answers):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return dict(asks.getpeercert() or {})


class Certificate:
    """The certificate of now; another one counts for new connections within a second. One that is not usable is reported, looked at again
    each second, and the old one stays."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self._directory, self._names = directory, names
        self._files = [Watched(directory / name) for name in (CERTIFICATE, KEY)]
        self.served = load(directory, names)
        self.failures = 0
        self._refused = ""

    def now(self) -> ssl.SSLContext:
        if any(file.has_changed() for file in self._files):
            self._renew()
        return self.served.context

    def _renew(self) -> None:
        try:
            self.served = load(self._directory, self._names)
        except TlsError as error:
            self.failures += 1
            if str(error) != self._refused:
                log.error("%s; the old certificate stays", error)
            self._refused = str(error)
            for file in self._files:
                # It may have been read while it was written.
                file.forget()
            return
        self._refused = ""
        log.info("certificate reloaded: for new connections from now on")
