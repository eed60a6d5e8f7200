"""The section `externalPools`: models of servers that are not the stack's, behind the same door."""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from infra.program.settings.models import ALIAS, authorities_problem, is_address
from infra.program.settings.network import PodsSettings
from infra.program.settings.section import Cidr, Section

POOL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_URL = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9._~%/-]*[A-Za-z0-9._~%-])?")
_METADATA = ("100.100.100.200", "168.63.129.16", "fd00:ec2::254")
"""Of clouds, beside those at link-local addresses. Sources: Alibaba's, Azure's and AWS's documentation."""


class ExternalPodsSettings(PodsSettings):
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the pods, where it is another one than that of their Service."""


class ExternalModelSettings(Section):
    id: str = Field(pattern=ALIAS)
    """The id that clients use for it; differs from every other id."""
    model: str | None = Field(default=None, min_length=1, max_length=256)
    """Its name in the pool; unset, the id."""
    context_length: int = Field(ge=512, le=16_777_216)
    """Tokens of a request that it takes. What is longer in any tokens is refused here, and what is nearer is counted by the pool."""


class ExternalPoolSettings(Section):
    url: str = Field(max_length=512)
    """As OpenAI's clients take it, such as `https://models.example.com/v1`. Its key, if it wants one, is in the secret externalKeys."""
    models: list[ExternalModelSettings] = Field(min_length=1, max_length=64)
    """Models of the pool that clients may use."""
    networks: list[Cidr] = Field(default=[])
    """Networks of the pool, where its url has a name: a network policy knows addresses only."""
    pods: ExternalPodsSettings | None = None
    """Pods of the pool, where it is in the same cluster."""
    session_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Header in which the pool is told which conversation a request belongs to, so that it can keep it on one server."""
    ca_bundle: str = ""
    """Certificates (PEM) of authorities that the pool's certificate may be of, beside the public ones."""
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Requests at once to the pool; more wait for apiServer.queueSeconds."""

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @model_validator(mode="after")
    def _is_somebody_else(self) -> Self:
        if re.search(r"[@?#]", self.url):
            # It is not echoed: logs and the state would show the credential.
            raise ValueError("url: got a user, a password or a query, want the address alone; put the key into externalKeys")
        try:
            good = bool(_URL.fullmatch(self.url) and self.host and self.port)
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"url: got {self.url!r}, want https://HOST[:PORT][/PATH] without a slash at its end; correct it")
        if self.host == "localhost" or self.host.endswith(".localhost") or (is_address(self.host) and _is_own(self.host)):
            raise ValueError(f"url: got {self.host}, want another machine than the one that asks; name the pool's address")
        return self

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if not (self.networks or self.pods or is_address(self.host)):
            why = "since a network policy cannot name hosts"
            raise ValueError(f"networks: got nothing, want the networks of {self.host}, {why}; list them, or name pods")
        if problem := authorities_problem(self.ca_bundle):
            raise ValueError(f"caBundle: {problem}")
        if self.ca_bundle and not self.url.startswith("https:"):
            raise ValueError("caBundle: got certificates for a url without TLS, want https; correct the url, or remove them")
        return self

    @property
    def cidrs(self) -> list[str]:
        """The networks that requests go to, but for pods."""
        return self.networks or ([str(ipaddress.ip_network(self.host))] if is_address(self.host) else [])


def problems(pools: Mapping[str, ExternalPoolSettings], ids: Sequence[str]) -> Iterator[str]:
    """Every rule between pools that they break. `ids`: of all models, these included."""
    urls = [pool.url for pool in pools.values()]
    for name, pool in pools.items():
        if urls.count(pool.url) > 1:
            yield f"externalPools.{name}.url: got {pool.url} twice, want one pool for each url; put the models of both into one"
        for index, model in enumerate(pool.models):
            if ids.count(model.id) > 1:
                yield f"externalPools.{name}.models.{index}.id: got {model.id} twice, want an id that no other model has; choose another"


def _is_own(host: str) -> bool:
    """Whether what answers there belongs to the machine that asks, as a cloud's metadata does (api_server/settings.py)."""
    found = ipaddress.ip_address(host)
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified or str(found) in _METADATA
