"""TLS of the API server: where its certificate comes from."""

import ssl
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.contract import API_SERVER
from infra.program.settings.section import Section

HOST = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+$"
_OBJECT = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
ObjectName = Annotated[str, Field(pattern=_OBJECT)]
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""Of a forwarded port."""


def service_names(namespace: str) -> list[str]:
    """By which pods know the API server; the first is that of the outputs."""
    return [f"{API_SERVER}.{namespace}.{end}" for end in ("svc", "svc.cluster.local")] + [f"{API_SERVER}.{namespace}", API_SERVER]


class IssuerSettings(Section):
    """An issuer of cert-manager's."""

    name: ObjectName
    """Its name."""
    kind: str = Field(default="ClusterIssuer", pattern=r"^[A-Z][A-Za-z]{0,62}$")
    """ClusterIssuer, Issuer of the stack's namespace, or a kind of another group."""
    group: ObjectName = "cert-manager.io"
    """Its API group."""
    service_names: bool = False
    """Whether it signs the names that pods use, such as api-server.modelfleet.svc. Authorities of one's own do, public ones do not."""


class TlsSettings(Section):
    """One of `secret`, `issuer` and `own`."""

    secret: ObjectName | None = None
    """A Secret of the type kubernetes.io/tls in the stack's namespace, made by others."""
    issuer: IssuerSettings | None = None
    """cert-manager makes the certificate, and renews it."""
    own: Literal[True] | None = None
    """An authority of the stack's own signs it: its secret `apiServerTls`, which `make up` makes and renews."""
    ca: str | None = None
    """The authority that signed it, in PEM, where it is none of the public ones. It is in the outputs for clients."""

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> Self:
        given = [name for name in ("secret", "issuer", "own") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise ValueError(f"secret: got {got}, want one of secret, issuer and own; {'remove the others' if given else 'set one'}")
        if self.own and self.ca is not None:
            raise ValueError("ca: got one with own, want the authority of the stack's own; remove it")
        return self

    @model_validator(mode="after")
    def _authority_is_a_certificate(self) -> Self:
        """A rule of the section: a message about the key would show its value, which may be a private key."""
        try:
            if self.ca is not None and "PRIVATE KEY" in self.ca:
                raise ValueError
            if self.ca is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=self.ca)
        except (ssl.SSLError, ValueError, TypeError):
            raise ValueError("ca: got something else, want the authority's certificate in PEM; take it from who signs") from None
        return self


def names_of(tls: TlsSettings, host: str | None, namespace: str) -> list[str]:
    """Names that the certificate must be valid for. The first one is that which a proxy in front asks for."""
    inside, outside = service_names(namespace), [host] if host else []
    if tls.own:
        return [inside[0], *outside]
    if tls.issuer is not None:
        # Authorities often refuse names without a domain.
        return [*(inside[:2] if tls.issuer.service_names else []), *outside]
    # Who makes it by hand may not be able to have names of Services in it.
    return outside or [inside[0]]
