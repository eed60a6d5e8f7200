"""Reads manifests and blobs from OCI registries. Source: OCI distribution specification 1.1; Docker's token authentication."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from yarl import URL

from image_verifier.access import AccessError, Logins

_INDEX = "application/vnd.oci.image.index.v1+json"
_DOCKER = "application/vnd.docker.distribution.manifest"
_ACCEPT = f"application/vnd.oci.image.manifest.v1+json, {_DOCKER}.v2+json, {_DOCKER}.list.v2+json, {_INDEX}"
_DEFAULT_HOST = "registry-1.docker.io"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BODY_BYTES = 1 << 20
"""Of a manifest, an index, a signature or a token: the largest have some 10 KB."""
_REDIRECTS = 3
_MOVED = (301, 302, 303, 307, 308)
_CACHED = 1_000
"""Repositories whose authorization is remembered; a process forgets all of them when it has seen so many."""


class RegistryError(Exception):
    """The registry did not answer as it should; the message says how."""


class DeniedError(RegistryError):
    """The registry refuses the login, or wants one."""

    def __init__(self, host: str, status: int, *, known: bool) -> None:
        """`known`: whether there was a login for it."""
        who = "the login of modelfleet:registryAuth" if known else "anyone without a login"
        super().__init__(f"{host} does not let {who} read (status {status})")
        self.remedy = "want one that may; correct modelfleet:registryAuth" if known else "want one; set modelfleet:registryAuth"


@dataclass(frozen=True)
class Reference:
    """An image by digest."""

    host: str
    repository: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Raises ValueError unless `text` is `[host/]repository[:tag]@sha256:<64 hex digits>`."""
        name, at, digest = text.partition("@")
        if not at or not DIGEST.fullmatch(digest):
            raise ValueError(text)
        first, slash, rest = name.partition("/")
        has_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
        path = rest if has_host else name
        head, _, last = path.rpartition("/")
        repository = f"{head}/{last.partition(':')[0]}" if head else last.partition(":")[0]
        docker_hub = not has_host or first in ("docker.io", "index.docker.io")
        if docker_hub and "/" not in repository:
            repository = f"library/{repository}"
        return cls(_DEFAULT_HOST if docker_hub else first, repository, digest)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """All of it. Raises RegistryError when there is more than any registry needs."""
    found = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        found += chunk
        if len(found) > _BODY_BYTES:
            response.close()
            raise RegistryError(f"{response.url.origin()}: got an answer of more than {_BODY_BYTES} bytes, want a manifest or a signature")
    return bytes(found)


def _host(registry: str) -> str:
    return registry.partition("://")[2]


class Registries:
    """A client for all registries; `mirror` is asked instead of an image's own host when given.

    A login goes to the host that it is for, and to the token server that this host names; over HTTPS, unless `mirror` itself is HTTP.
    """

    def __init__(self, session: aiohttp.ClientSession, mirror: str = "", logins: Logins | None = None) -> None:
        self._session = session
        self._mirror = mirror
        self._logins = logins or Logins(None)
        self._granted: dict[tuple[str, str], str] = {}
        """Registry and repository to the `Authorization` that was good there last."""

    async def manifest(self, image: Reference, tag: str) -> bytes | None:
        """None when there is no such tag. Raises RegistryError."""
        return await self._get(image, f"manifests/{tag}", {"Accept": _ACCEPT})

    async def referrers(self, image: Reference) -> bytes | None:
        """The index of artifacts that refer to the image; None when there is none. Raises RegistryError."""
        found = await self._get(image, f"referrers/{image.digest}", {"Accept": _INDEX})
        return found if found is not None else await self.manifest(image, image.digest.replace(":", "-"))

    async def blob(self, image: Reference, digest: str) -> bytes | None:
        return await self._get(image, f"blobs/{digest}", {})

    async def _get(self, image: Reference, path: str, headers: Mapping[str, str]) -> bytes | None:
        registry = self._mirror or f"https://{image.host}"
        url = f"{registry}/v2/{image.repository}/{path}"
        granted = self._granted.get((registry, image.repository))
        try:
            status, body, challenge = await self._fetch(url, headers, granted)
            if status == 401 and challenge:
                granted = await self._authorize(registry, image.repository, challenge)
                status, body, _ = await self._fetch(url, headers, granted)
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            # The class alone: a message may hold an address with a token in it.
            raise RegistryError(f"{url}: {type(error).__name__}") from None
        if status in (401, 403):
            raise DeniedError(_host(registry), status, known=self._login(registry, image.repository) is not None)
        if granted is not None:
            self._remember((registry, image.repository), granted)
        if status == 404:
            return None
        if status != 200:
            raise RegistryError(f"{url}: status {status}")
        return body

    def _remember(self, place: tuple[str, str], granted: str) -> None:
        if len(self._granted) >= _CACHED:
            self._granted.clear()
        self._granted[place] = granted

    async def _fetch(self, url: str, headers: Mapping[str, str], authorization: str | None) -> tuple[int, bytes, str]:
        """Status, body and challenge. An authorization goes to its own host alone, and nothing to a plainer place than the first."""
        place, sent = URL(url), {**headers, **({"Authorization": authorization} if authorization else {})}
        for _ in range(_REDIRECTS + 1):
            async with self._session.get(place, headers=sent, allow_redirects=False) as response:
                if response.status not in _MOVED:
                    return response.status, await _body(response), response.headers.get("WWW-Authenticate", "")
                moved = place.join(URL(response.headers.get("Location", "")))
            if moved.scheme != "https" and moved.origin() != URL(url).origin():
                raise RegistryError(f"{url}: got a redirect to {str(moved.origin())[:100]}, want one over HTTPS")
            if moved.origin() != place.origin():
                sent.pop("Authorization", None)
            place = moved
        raise RegistryError(f"{url}: got more than {_REDIRECTS} redirects, want the content")

    def _login(self, registry: str, repository: str) -> str | None:
        try:
            return self._logins.basic(_host(registry), repository)
        except AccessError as error:
            raise RegistryError(str(error)) from None

    async def _authorize(self, registry: str, repository: str, challenge: str) -> str | None:
        """`Authorization` as the challenge wants it: the login itself, or a token, anonymous without a login. Raises RegistryError."""
        scheme, _, rest = challenge.partition(" ")
        login = self._login(registry, repository)
        if scheme.lower() == "basic":
            return login
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = fields.get("realm", "")
        if scheme.lower() != "bearer" or not realm.startswith(("https://", registry.partition("//")[0] + "//")):
            raise RegistryError(f"{registry}: got the challenge {challenge[:100]!r}, want Basic, or Bearer with a realm over HTTPS")
        query = {name: fields[name] for name in ("service", "scope") if name in fields}
        headers = {"Authorization": login} if login else {}
        async with self._session.get(realm, params=query, headers=headers, allow_redirects=False) as response:
            if response.status in (401, 403):
                raise DeniedError(_host(registry), response.status, known=login is not None)
            if response.status != 200:
                raise RegistryError(f"{realm}: status {response.status}")
            token = json.loads(await _body(response))
        found = (token.get("token") or token.get("access_token")) if isinstance(token, dict) else None
        if not isinstance(found, str):
            raise RegistryError(f"{realm}: got an answer without a token")
        return f"Bearer {found}"
