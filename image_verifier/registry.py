"""Reads manifests and blobs from OCI registries. Source: OCI distribution specification 1.1; Docker's token authentication."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

_INDEX = "application/vnd.oci.image.index.v1+json"
_ACCEPT = f"application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, {_INDEX}"
_DEFAULT_HOST = "registry-1.docker.io"


class RegistryError(Exception):
    """The registry did not answer as it should; the message says how."""


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
        if not at or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
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


class Registries:
    """A client for all registries; `mirror` is asked instead of an image's own host when given."""

    def __init__(self, session: aiohttp.ClientSession, mirror: str = "") -> None:
        self._session = session
        self._mirror = mirror

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
        url = f"{self._mirror or f'https://{image.host}'}/v2/{image.repository}/{path}"
        try:
            status, body, challenge = await self._fetch(url, headers)
            if status == 401 and challenge:
                status, body, _ = await self._fetch(url, {**headers, "Authorization": await self._authorize(image.host, challenge)})
        except aiohttp.ClientError as error:
            raise RegistryError(f"{url}: {type(error).__name__}") from None
        if status == 404:
            return None
        if status != 200:
            raise RegistryError(f"{url}: status {status}")
        return body

    async def _fetch(self, url: str, headers: Mapping[str, str]) -> tuple[int, bytes, str]:
        async with self._session.get(url, headers=headers) as response:
            return response.status, await response.read(), response.headers.get("WWW-Authenticate", "")

    async def _authorize(self, host: str, challenge: str) -> str:
        """An anonymous token, as public repositories give. Raises RegistryError where the registry wants a login."""
        scheme, _, rest = challenge.partition(" ")
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if scheme.lower() != "bearer" or not fields.get("realm", "").startswith("https://"):
            raise RegistryError(f"{host}: it wants a login")
        query = {name: fields[name] for name in ("service", "scope") if name in fields}
        async with self._session.get(fields["realm"], params=query) as response:
            if response.status != 200:
                raise RegistryError(f"{host}: its token server answered with status {response.status}")
            token = await response.json(content_type=None)
        return f"Bearer {token.get('token') or token.get('access_token')}"
