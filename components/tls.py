"""The certificate of the API server: from a Secret of others, from cert-manager, or from the configuration."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from . import objects
from .contract import API_SERVER, labels

core = k8s.core.v1
SECRET = "api-server-tls"  # noqa: S105 (a name)
"""A constant: a renewed certificate must restart no pod."""
_CERT_MANAGER = "cert-manager.io/v1"


@dataclass(frozen=True, kw_only=True)
class IssuerArgs:
    """An issuer of cert-manager's."""

    name: str
    kind: str = "ClusterIssuer"
    group: str = "cert-manager.io"


@dataclass(frozen=True, kw_only=True)
class PairArgs:
    """A certificate and its key, both in PEM."""

    certificate: pulumi.Input[str]
    private_key: pulumi.Input[str]
    """A Pulumi secret."""


@dataclass(frozen=True, kw_only=True)
class TlsArgs:
    """TLS of the API server. One of `secret`, `issuer` and `pair`."""

    names: Sequence[str]
    """That the certificate must be valid for; with an issuer those that it gets."""
    secret: str | None = None
    """Name of a Secret of the type kubernetes.io/tls that others make."""
    issuer: IssuerArgs | None = None
    pair: PairArgs | None = None
    authority: str = ""
    """In PEM; empty for a public one."""


def secret(name: str, args: TlsArgs, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> pulumi.Input[str]:
    """Have the certificate made. Returns the name of its Secret."""
    if args.secret is not None:
        return args.secret
    about = k8s.meta.v1.ObjectMetaArgs(name=SECRET, namespace=namespace, labels=labels(API_SERVER))
    if args.pair is not None:
        texts = {"tls.crt": args.pair.certificate, "tls.key": pulumi.Output.secret(args.pair.private_key), "ca.crt": args.authority}
        return core.Secret(name, metadata=about, type="kubernetes.io/tls", string_data=texts, opts=opts).metadata.name
    assert args.issuer is not None, "one of secret, issuer and pair"  # noqa: S101
    certificate = k8s.apiextensions.CustomResource(
        name,
        api_version=_CERT_MANAGER,
        kind="Certificate",
        metadata=objects.metadata(API_SERVER, namespace),
        spec={
            "secretName": SECRET,
            "dnsNames": list(args.names),
            "issuerRef": {"name": args.issuer.name, "kind": args.issuer.kind, "group": args.issuer.group},
            # A signature by it costs a tenth of RSA's, and there is one for each new connection.
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "usages": ["digital signature", "server auth"],
        },
        opts=opts,
    )
    # Pods wait until cert-manager has made it.
    return pulumi.Output.all(certificate.id).apply(lambda _: SECRET)
