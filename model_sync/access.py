"""HTTP requests to sources: which certificates are trusted, and which server sees which credential.

A credential goes to the server that it was given for, over TLS, and to no other: what redirects elsewhere is followed without it.
Source of the registries' token flow: distribution.github.io/distribution/spec/auth/token.
"""

import base64
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from model_sync.connections import Http, Https, ProxyError, Redirects, Way, read_all, server_of
from model_sync.patience import TIMEOUT_S
from model_sync.proxy import Proxy
from model_sync.store import StoreError

_DOCUMENT_BYTES = 1 << 20


class AccessError(StoreError):
    """A source does not let the writer in, or does not prove who it is. The message goes on after `models.<name>.source: `."""


def credentials(path: Path) -> dict[str, str]:
    """`host` or `host:port` to a token or `user:password`, from a JSON file. Raises StoreError without its content."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise StoreError(f"{path}: got no credentials, want a JSON map of host to credential; set modelfleet:sourceTokens again")
    return found


@dataclass
class Access:
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_bundle: Path | None = None
    """Certificates (PEM) that are trusted beside those of the image."""
    timeout_s: float = TIMEOUT_S
    proxy: Proxy | None = None
    """What leads to sources out of the cluster; its own credential is among `credentials`, by its HOST:PORT."""
    _pull_tokens: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)
    """Server and repository to the token that its registry gave out."""

    def open(self, url: str, headers: Mapping[str, str], repository: str = "") -> HTTPResponse:
        """The answer of `url`; `repository` is a registry's, for which a token may be asked for.

        Raises AccessError where the server refuses us or we refuse the server, HTTPError for any other bad status, or OSError.
        """
        try:
            return self._open(url, headers, repository)
        except ValueError as error:
            # Of an address in a redirect, in a challenge, or in a header that is none.
            raise AccessError(f"got an answer of {url} that is no HTTP ({error}), want the content; ask who runs it") from None

    def _open(self, url: str, headers: Mapping[str, str], repository: str) -> HTTPResponse:
        token = self._pull_tokens.get((server_of(url), repository))
        try:
            return self._send(url, headers, f"Bearer {token}" if token else self._authorization(url))
        except urllib.error.HTTPError as error:
            challenge = _challenge(error)
            if not repository or error.code != 401 or challenge is None or server_of(error.url) != server_of(url):
                raise self._refused(error, url) from None
            error.close()
        token = self._pull_token(url, challenge, repository)
        self._pull_tokens[server_of(url), repository] = token
        try:
            return self._send(url, headers, f"Bearer {token}")
        except urllib.error.HTTPError as error:
            raise self._refused(error, url) from None

    def _pull_token(self, url: str, challenge: Mapping[str, str], repository: str) -> str:
        realm, scope = challenge.get("realm", ""), f"repository:{repository}:pull"
        if urlsplit(realm).scheme not in ("https", urlsplit(url).scheme):
            raise AccessError(
                f"got the token server {realm[:200]!r} from {server_of(url)}, want an https address; ask who runs the registry"
            )
        asked = {"service": challenge["service"]} if "service" in challenge else {}
        address = f"{realm}{'&' if '?' in realm else '?'}{urlencode({**asked, 'scope': scope})}"
        try:
            with self._send(address, {}, self._authorization(realm)) as response:
                found: Any = json.loads(read_all(response, _DOCUMENT_BYTES, self.timeout_s))
            token = found.get("token") or found.get("access_token")
        except urllib.error.HTTPError as error:
            raise self._refused(error, realm) from None
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
            raise AccessError(f"got no token from {server_of(realm)}, want one for {scope}; ask who runs the registry")
        return token

    def _send(self, url: str, headers: Mapping[str, str], authorization: str | None) -> HTTPResponse:
        request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 (the opener knows http and https alone)
        if authorization:
            request.add_header("Authorization", authorization)
        try:
            return self._opener.open(request, timeout=self.timeout_s)
        except ProxyError as error:
            raise self._kept_out(error.status, error.target) or error from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise AccessError(
                    f"got a certificate of {server_of(url)} that is not trusted ({error.reason.verify_message}), want one by a known "
                    "authority; set delivery.caBundle to the certificate of yours, or correct the source"
                ) from None
            raise

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        """For http and https alone, and by no proxy but the declared one: the network policy lets the writer reach nothing else."""
        way = Way(self.proxy, _header(self._proxy_credential))
        opener = urllib.request.OpenerDirector()
        for handler in (
            Http(way),
            Https(way, lambda: self._trusted),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
            Redirects(),
        ):
            opener.add_handler(handler)
        return opener

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self.ca_bundle is not None:
            context.load_verify_locations(cafile=self.ca_bundle)
        return context

    def _credential(self, url: str) -> str | None:
        if urlsplit(url).scheme != "https":
            return None
        return next((value for host, value in self.credentials.items() if server_of(f"https://{host}") == server_of(url)), None)

    def _authorization(self, url: str) -> str | None:
        return _header(self._credential(url))

    @property
    def _proxy_credential(self) -> str | None:
        return self.credentials.get(self.proxy.server) if self.proxy else None

    def via(self, url: str) -> str:
        """For messages: what leads to the server, if it is the proxy."""
        return self.proxy.via(url) if self.proxy else ""

    def _kept_out(self, status: int | None, target: str) -> AccessError | None:
        """What a person has to know of a refusal by the proxy itself; None where another attempt may help."""
        found = self.proxy.refusal(status, target, known=self._proxy_credential is not None) if self.proxy else None
        return AccessError(found) if found else None

    def _refused(self, error: urllib.error.HTTPError, url: str) -> Exception:
        """What a person has to know of a 401, 403 or 407, and an OSError where one of them may pass; any other error as it is."""
        if self.via(error.url) and error.code == 407:
            error.close()
            return self._kept_out(407, server_of(error.url)) or error
        if error.code not in (401, 403):
            return error
        error.close()
        server, via = server_of(error.url), self.via(error.url)
        if server != server_of(url):
            where = f"{server}{via}, where {server_of(url)} redirects to"
            if error.code == 403:
                # An address with a signature whose time is over, or a storage that is busy: the next attempt asks for another address.
                return OSError(f"403 from {where}")
            return AccessError(f"got {error.code} from {where}, want the content; ask who runs them")
        if self._credential(url) is not None:
            return AccessError(
                f"got {error.code} from {server}{via} with its credential, want leave to read; renew it in modelfleet:sourceTokens"
            )
        hint = f"set modelfleet:sourceTokens for {server}, or correct the source"
        if urlsplit(url).scheme != "https":
            hint = "open it to the writer, or serve it over TLS and set modelfleet:sourceTokens"
        return AccessError(f"got {error.code} from {server}{via}, want leave to read; {hint}")


def _header(credential: str | None) -> str | None:
    if credential is None:
        return None
    return f"Basic {base64.b64encode(credential.encode()).decode()}" if ":" in credential else f"Bearer {credential}"


def _challenge(error: urllib.error.HTTPError) -> dict[str, str] | None:
    """Parameters of the `WWW-Authenticate: Bearer` of an answer."""
    for value in error.headers.get_all("WWW-Authenticate") or []:
        scheme, _, parameters = value.partition(" ")
        if scheme.lower() == "bearer":
            return {name.lower(): quoted or bare for name, quoted, bare in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s",]+))', parameters)}
    return None
