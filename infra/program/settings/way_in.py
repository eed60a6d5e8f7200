"""How clients from outside come to the API server by name, beside its Service."""

from typing import Self

from pydantic import Field, model_validator

from infra.program.settings.network import PodsSettings
from infra.program.settings.section import Annotations, DnsLabel, Section
from infra.program.settings.tls import ObjectName


class IngressSettings(Section):
    """An Ingress. The annotations are those of ingress-nginx; other controllers are told by yours."""

    class_name: ObjectName
    """Whose Ingress it is: a name of kubectl get ingressclass."""
    tls_secret: ObjectName | None = None
    """A Secret with the certificate that clients see. Unset, that of apiServer.tls, or else the controller's own."""
    passthrough: bool = False
    """TLS ends at the API server, with the certificate of apiServer.tls. ingress-nginx wants --enable-ssl-passthrough for it."""
    annotations: Annotations = Field(default={})
    """Annotations of the Ingress, beside those with the API server's limits, or in their place."""


class HttpRouteSettings(Section):
    """A route of the Gateway API. The Gateway is made by others, and has the certificate that clients see."""

    gateway: ObjectName
    """Name of the Gateway."""
    namespace: DnsLabel
    """Namespace of the Gateway, which must let routes of the stack's namespace in."""
    section: ObjectName | None = None
    """Name of a listener; unset, every listener that takes the host."""


class WayInSettings(Section):
    """One of `ingress` and `httpRoute`."""

    ingress: IngressSettings | None = None
    """An Ingress."""
    http_route: HttpRouteSettings | None = None
    """An HTTPRoute of the Gateway API."""
    proxies: list[PodsSettings] = Field(default=[])
    """The pods that connections come from: the ingress controller's, or the Gateway's. Where apiServer.clientCidrs is not set, nobody else
    may connect but them and network.clients. A proxy without pods in the cluster, or on the nodes' network, goes into clientCidrs."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.ingress is None) == (self.http_route is None):
            got = "none of them" if self.ingress is None else "both"
            raise ValueError(f"ingress: got {got}, want one of ingress and httpRoute; {'set' if self.ingress is None else 'remove'} one")
        return self
