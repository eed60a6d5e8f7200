"""How clients from outside come to the API server by name: through an Ingress, or a route of the Gateway API.

What a proxy on the way may do follows from what the API server itself does: how large a body it takes, and how long it may be silent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pulumi
import pulumi_kubernetes as k8s

from . import objects
from .contract import API_SERVER, PORTS, READER_LABEL, labels
from .tls import TlsArgs

net = k8s.networking.v1
_GATEWAY_API = "gateway.networking.k8s.io/v1"
_AUTHORITY = "api-server-authority"
_NGINX = "nginx.ingress.kubernetes.io/"
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class LimitsArgs:
    """What the API server does, and a proxy has to bear."""

    body_bytes: int
    """Of the largest request."""
    silent_s: int
    """Longest wait for the first byte of an answer that is no stream."""


@dataclass(frozen=True, kw_only=True)
class IngressArgs:
    """An Ingress."""

    host: str
    class_name: str
    secret: str | None = None
    """The certificate that the controller shows. None: that of the API server's TLS, or without it the controller's own."""
    passthrough: bool = False
    """The controller leaves TLS to the API server."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Beside ours, which are ingress-nginx's, or in their place."""


@dataclass(frozen=True, kw_only=True)
class HttpRouteArgs:
    """A route of a Gateway that others made. The Gateway has the certificate that clients see."""

    host: str
    gateway: str
    gateway_namespace: str
    section: str | None = None
    """A listener of the Gateway; None: all that take the host."""


def nginx_annotations(limits: LimitsArgs, *, tls: bool, passthrough: bool) -> dict[str, str]:
    """What ingress-nginx is told. `tls`: the API server has it."""
    if passthrough:
        return {f"{_NGINX}ssl-passthrough": "true"}
    told = {
        # A mebibyte more, so that who sends too much is told so by the API server, in words that clients know.
        "proxy-body-size": f"{limits.body_bytes // _MIB + 1}m",
        "proxy-read-timeout": str(limits.silent_s),
        # Streams come as they are made; and who has no key is refused before the body is read.
        "proxy-buffering": "off",
        "proxy-request-buffering": "off",
        **({"backend-protocol": "HTTPS"} if tls else {}),
    }
    return {f"{_NGINX}{name}": value for name, value in told.items()}


ROUTE_TIMEOUTS = {"request": "0s"}
"""None: an answer may take as long as it takes, and what hangs is ended by the API server."""


def ingress(
    name: str, args: IngressArgs, limits: LimitsArgs, tls_secret: pulumi.Input[str] | None, namespace: pulumi.Input[str],
    opts: pulumi.ResourceOptions,
) -> None:  # fmt: skip
    """`tls_secret`: with the certificate of the API server's own TLS."""
    annotations = nginx_annotations(limits, tls=tls_secret is not None, passthrough=args.passthrough) | dict(args.annotations)
    backend = net.IngressBackendArgs(
        service=net.IngressServiceBackendArgs(name=API_SERVER, port=net.ServiceBackendPortArgs(number=PORTS[API_SERVER]))
    )
    paths = [net.HTTPIngressPathArgs(path="/", path_type="Prefix", backend=backend)]
    shown = None if args.passthrough else args.secret or tls_secret
    net.Ingress(
        name,
        # Nobody can say when a controller takes it on; some never write its address.
        metadata=objects.metadata(API_SERVER, namespace, annotations={**annotations, **objects.SKIP_AWAIT}),
        spec=net.IngressSpecArgs(
            ingress_class_name=args.class_name,
            tls=[net.IngressTLSArgs(hosts=[args.host], secret_name=shown)],
            rules=[net.IngressRuleArgs(host=args.host, http=net.HTTPIngressRuleValueArgs(paths=paths))],
        ),
        opts=opts,
    )


def http_route(name: str, args: HttpRouteArgs, tls: TlsArgs | None, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> None:
    """The route, and with TLS of the API server's what the Gateway needs to believe it."""
    parent = {"name": args.gateway, "namespace": args.gateway_namespace, **({"sectionName": args.section} if args.section else {})}
    k8s.apiextensions.CustomResource(
        name,
        api_version=_GATEWAY_API,
        kind="HTTPRoute",
        metadata=objects.metadata(API_SERVER, namespace),
        spec={
            "parentRefs": [parent],
            "hostnames": [args.host],
            "rules": [{"backendRefs": [{"name": API_SERVER, "port": PORTS[API_SERVER]}], "timeouts": ROUTE_TIMEOUTS}],
        },
        opts=opts,
    )
    if tls is not None:
        _believed(name, tls, namespace, opts)


def _believed(name: str, tls: TlsArgs, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> None:
    trusted: dict[str, object] = {"wellKnownCACertificates": "System"}
    if tls.authority:
        k8s.core.v1.ConfigMap(
            f"{name}-authority",
            metadata=k8s.meta.v1.ObjectMetaArgs(
                name=_AUTHORITY, namespace=namespace, labels=labels(API_SERVER) | {READER_LABEL: "gateway"}
            ),
            data={"ca.crt": tls.authority},
            opts=opts,
        )
        trusted = {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": _AUTHORITY}]}
    k8s.apiextensions.CustomResource(
        f"{name}-tls",
        api_version=_GATEWAY_API,
        kind="BackendTLSPolicy",
        metadata=objects.metadata(API_SERVER, namespace),
        spec={
            "targetRefs": [{"group": "", "kind": "Service", "name": API_SERVER}],
            "validation": {"hostname": tls.names[0], **trusted},
        },
        opts=opts,
    )
