"""From the settings to the API server's certificate, its way in, and the addresses that clients have of it."""

import pulumi

import components as c
from components.contract import API_SERVER, PORTS
from infra.program.settings import Settings, inputs
from infra.program.settings.tls import names_of, service_names

BASE_PATH = "/v1"


def tls(settings: Settings) -> c.TlsArgs | None:
    wanted = settings.api_server.tls
    if wanted is None:
        return None
    names = names_of(wanted, settings.api_server.host, settings.cluster.namespace)
    issuer, pair = None, None
    if wanted.issuer is not None:
        issuer = c.IssuerArgs(name=wanted.issuer.name, kind=wanted.issuer.kind, group=wanted.issuer.group)
    if wanted.own:
        made = inputs.api_server_tls()
        pair = c.PairArgs(certificate=made["certificate"], private_key=pulumi.Output.secret(made["privateKey"]))
    return c.TlsArgs(names=names, secret=wanted.secret, issuer=issuer, pair=pair, authority=authority(settings))


def authority(settings: Settings) -> str:
    """In PEM, of who signed the certificate; empty for a public one, and without TLS."""
    wanted = settings.api_server.tls
    if wanted is None:
        return ""
    return inputs.api_server_tls()["authority"] if wanted.own else wanted.ca or ""


def way_in(settings: Settings) -> c.IngressArgs | c.HttpRouteArgs | None:
    wanted, host = settings.api_server.way_in, settings.api_server.host or ""
    if wanted is None:
        return None
    if wanted.http_route is not None:
        route = wanted.http_route
        return c.HttpRouteArgs(host=host, gateway=route.gateway, gateway_namespace=route.namespace, section=route.section)
    assert wanted.ingress is not None, "one of the two"  # noqa: S101
    own = wanted.ingress
    return c.IngressArgs(
        host=host, class_name=own.class_name, secret=own.tls_secret, passthrough=own.passthrough, annotations=own.annotations
    )


def url(settings: Settings, service: str) -> str:
    """Base URL for clients inside the cluster, by a name that the certificate has."""
    inside, port = service_names(settings.cluster.namespace), PORTS[API_SERVER]
    args = tls(settings)
    if args is None:
        return f"http://{service}.{settings.cluster.namespace}.svc:{port}{BASE_PATH}"
    host = inside[0] if inside[0] in args.names else args.names[0]
    return f"https://{host}:{port}{BASE_PATH}"


def public_url(settings: Settings) -> str | None:
    """Base URL for clients outside of it; None where the configuration names no host."""
    wanted = settings.api_server
    if wanted.host is None:
        return None
    if wanted.way_in is not None:
        return f"https://{wanted.host}{BASE_PATH}"
    port = wanted.node_port or PORTS[API_SERVER]
    return f"http{'s' if wanted.tls else ''}://{wanted.host}:{port}{BASE_PATH}"
