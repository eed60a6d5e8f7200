"""Only signed images run in the namespace: the admission webhook and what it stands on."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects, pods, registry_auth
from .contract import DATA_LABEL, EVERYWHERE, IMAGE_VERIFIER, PORTS, PULL_SECRET, RESTRICTED, labels, selector, type_token
from .network import DnsArgs, addresses, default_deny, dns_egress
from .workload import ORDINARY, WorkloadArgs

admission = k8s.admissionregistration.v1
core = k8s.core.v1
net = k8s.networking.v1
_TIMEOUT_S = 10
"""What the API server waits; the verifier itself gives up at half of it, and says why."""


def _images(pod: str, kind: str) -> str:
    return f"(has({pod}.spec.{kind}) ? {pod}.spec.{kind}.map(each, each.image) : [])"


BRINGS_IMAGES = "request.operation != 'UPDATE' || (has(request.subResource) && request.subResource == 'ephemeralcontainers') || " + (
    "(!has(oldObject.metadata.deletionTimestamp) && ("
    + " || ".join(f"{_images('object', kind)} != {_images('oldObject', kind)}" for kind in ("containers", "initContainers"))
    + "))"
)
"""CEL, for the API server: labels and finalizers of pods that are there, and pods on their way out, must not wait for a verifier."""


@dataclass(frozen=True, kw_only=True)
class ImageTrustArgs:
    """Inputs of ImageTrust."""

    protected_namespace: pulumi.Input[str]
    """Where every pod's images must be signed."""
    namespace: str
    """Where the verifier runs. Not the protected one: it would have to let itself in."""
    image: pulumi.Input[str]
    public_keys: str
    """One or more public keys in PEM, as `cosign generate-key-pair` writes them."""
    certificate: pulumi.Input[str]
    """Serving certificate for `image-verifier.<namespace>.svc`, PEM, self-signed: also what the API server trusts."""
    private_key: pulumi.Input[str]
    """Its key, a Pulumi secret."""
    mirror: str = ""
    """Registry that is asked for every signature; empty: the host in the image's own name."""
    registries: Sequence[str] = ()
    """Hosts that images may come from, and that are asked; empty is any."""
    registry_auth: pulumi.Input[str] | None = None
    """dockerconfigjson with the logins of private registries, which signatures are read with."""
    ca_bundle: str = ""
    """Authorities of registries beside the public ones, PEM."""
    debug_containers: bool = True
    """Whether pods may get ephemeral containers, of signed images."""
    dns: DnsArgs = field(default_factory=DnsArgs)
    prefix: str = ""
    """What the webhook configuration's name begins with, where a cluster has several fleets."""
    replicas: int = 2
    priority_class: pulumi.Input[str] | None = None
    """Of the verifiers: without them no pod of the protected namespace starts."""
    resources: containers.ResourceArgs
    workload: WorkloadArgs = ORDINARY


class ImageTrust(pulumi.ComponentResource):
    """Refuses pods whose images carry no cosign signature by a trusted key, with one line an image.

    Fails closed: while no verifier answers, no new pod starts in the protected namespace; running ones stay. Whatever makes
    pods there should depend on this component, or it could be too early to be checked.

        trust = ImageTrust("trust", ImageTrustArgs(protected_namespace="fleet", namespace="fleet-admission",
                                                   image="registry.example.com/image-verifier@sha256:" + 64 * "0",
                                                   public_keys="-----BEGIN PUBLIC KEY-----...",
                                                   certificate="-----BEGIN CERTIFICATE-----...",
                                                   private_key=pulumi.Output.secret("in PEM, too"),
                                                   resources=ResourceArgs(cpu="50m", memory="128Mi")))
    """

    webhook: pulumi.Output[str]

    def __init__(self, name: str, args: ImageTrustArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("ImageTrust"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        namespace = core.Namespace(
            f"{name}-namespace",
            metadata=k8s.meta.v1.ObjectMetaArgs(name=args.namespace, labels=labels("namespace") | RESTRICTED | {DATA_LABEL: "none"}),
            opts=child,
        ).metadata.name
        self._policies(name, namespace, args.dns, child)
        servers = self._servers(name, args, namespace, child)
        service = objects.service(f"{name}-service", IMAGE_VERIFIER, namespace, {"https": PORTS[IMAGE_VERIFIER]}, child)
        objects.disruption_budget(f"{name}-budget", IMAGE_VERIFIER, namespace, child)
        webhook = admission.ValidatingWebhookConfiguration(
            f"{name}-webhook",
            metadata=k8s.meta.v1.ObjectMetaArgs(name=f"{args.prefix}{IMAGE_VERIFIER}.modelfleet.dev", labels=labels(IMAGE_VERIFIER)),
            webhooks=[_webhook(args, service.metadata)],
            # Before its servers answer it would refuse everything.
            opts=pulumi.ResourceOptions.merge(child, pulumi.ResourceOptions(depends_on=[servers])),
        )
        self.webhook = webhook.metadata.name
        self.register_outputs({"webhook": self.webhook})

    def _servers(
        self, name: str, args: ImageTrustArgs, namespace: pulumi.Input[str], child: pulumi.ResourceOptions
    ) -> k8s.apps.v1.Deployment:
        tls = core.Secret(
            f"{name}-tls",
            metadata=objects.metadata(IMAGE_VERIFIER, namespace, named=False),
            string_data={"tls.crt": args.certificate, "tls.key": pulumi.Output.secret(args.private_key)},
            immutable=True,
            opts=child,
        )
        keys = core.ConfigMap(
            f"{name}-keys",
            metadata=objects.metadata(IMAGE_VERIFIER, namespace, named=False),
            data={"cosign.pub": args.public_keys, **({"ca.pem": args.ca_bundle} if args.ca_bundle else {})},
            immutable=True,
            opts=child,
        )
        logins: list[pulumi.Resource] = []
        if args.registry_auth is not None:
            logins.append(registry_auth.pull_secret(f"{name}-registry-auth", namespace, args.registry_auth, child))
        runs = objects.account(f"{name}-account", IMAGE_VERIFIER, namespace, child, args.workload)
        after = pulumi.ResourceOptions.merge(runs, pulumi.ResourceOptions(depends_on=logins))
        pod = _pod(args, tls.metadata.name, keys.metadata.name)
        return pods.deployment(f"{name}-servers", IMAGE_VERIFIER, namespace, pod, after, replicas=args.replicas)

    @staticmethod
    def _policies(name: str, namespace: pulumi.Input[str], dns: DnsArgs, child: pulumi.ResourceOptions) -> None:
        """The API server comes from a node, registries are anywhere: a port is all that can be said of either."""
        default_deny(f"{name}-default-deny", namespace, child)
        port = net.NetworkPolicyPortArgs(port=PORTS[IMAGE_VERIFIER], protocol="TCP")
        anywhere = addresses(EVERYWHERE)
        net.NetworkPolicy(
            f"{name}-{IMAGE_VERIFIER}",
            metadata=k8s.meta.v1.ObjectMetaArgs(name=IMAGE_VERIFIER, namespace=namespace, labels=labels("network")),
            spec=net.NetworkPolicySpecArgs(
                pod_selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(IMAGE_VERIFIER)),
                policy_types=["Ingress", "Egress"],
                ingress=[net.NetworkPolicyIngressRuleArgs(ports=[port])],
                egress=[net.NetworkPolicyEgressRuleArgs(to=anywhere), dns_egress(dns)],
            ),
            opts=child,
        )


def _webhook(args: ImageTrustArgs, service: pulumi.Output[k8s.meta.v1.outputs.ObjectMeta]) -> admission.ValidatingWebhookArgs:
    return admission.ValidatingWebhookArgs(
        name=f"{IMAGE_VERIFIER}.modelfleet.dev",
        admission_review_versions=["v1"],
        side_effects="None",
        failure_policy="Fail",
        match_policy="Equivalent",
        timeout_seconds=_TIMEOUT_S,
        namespace_selector=k8s.meta.v1.LabelSelectorArgs(match_labels={"kubernetes.io/metadata.name": args.protected_namespace}),
        rules=[
            admission.RuleWithOperationsArgs(
                api_groups=[""],
                api_versions=["v1"],
                operations=["CREATE", "UPDATE"],
                resources=["pods", "pods/ephemeralcontainers"],
                scope="Namespaced",
            )
        ],
        match_conditions=[admission.MatchConditionArgs(name="brings-images", expression=BRINGS_IMAGES)],
        client_config=admission.WebhookClientConfigArgs(
            ca_bundle=pulumi.Output.from_input(args.certificate).apply(lambda pem: base64.b64encode(pem.encode()).decode()),
            service=admission.ServiceReferenceArgs(
                name=service.name, namespace=service.namespace, path="/validate", port=PORTS[IMAGE_VERIFIER]
            ),
        ),
    )


def _pod(args: ImageTrustArgs, tls: pulumi.Input[str], keys: pulumi.Input[str]) -> core.PodSpecArgs:
    tmp, tmp_mount = containers.scratch()
    secret, secret_mount = containers.secret_file("tls", tls, "/etc/tls")
    config, config_mount = containers.config_file("keys", keys, "/etc/keys")
    volumes = [tmp, secret, config]
    mounts = [tmp_mount, secret_mount, config_mount]
    optional: dict[str, pulumi.Input[str]] = {"VERIFIER_CA_FILE": "/etc/keys/ca.pem"} if args.ca_bundle else {}
    if args.registries:
        optional["VERIFIER_REGISTRIES"] = ",".join(args.registries)
    if not args.debug_containers:
        optional["VERIFIER_DEBUG_CONTAINERS"] = "0"
    if args.registry_auth is not None:
        logins, logins_mount = containers.secret_file("registry-auth", PULL_SECRET, "/etc/registry-auth")
        volumes, mounts = [*volumes, logins], [*mounts, logins_mount]
        optional["VERIFIER_REGISTRY_AUTH_FILE"] = f"/etc/registry-auth/{registry_auth.FILE}"
    port = PORTS[IMAGE_VERIFIER]
    probe = core.HTTPGetActionArgs(path="/health", port=port, scheme="HTTPS")
    container = core.ContainerArgs(
        name=IMAGE_VERIFIER,
        image=args.image,
        env=containers.env(
            {
                **containers.HOME,
                "VERIFIER_PORT": str(port),
                "VERIFIER_CERTIFICATE_FILE": "/etc/tls/tls.crt",
                "VERIFIER_KEY_FILE": "/etc/tls/tls.key",
                "VERIFIER_PUBLIC_KEYS_FILE": "/etc/keys/cosign.pub",
                "VERIFIER_MIRROR": args.mirror,
                "VERIFIER_TIMEOUT_S": str(_TIMEOUT_S / 2),
                **optional,
            }
        ),
        ports=[core.ContainerPortArgs(name="https", container_port=port)],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=mounts,
        readiness_probe=core.ProbeArgs(http_get=probe, period_seconds=2, timeout_seconds=3),
        liveness_probe=core.ProbeArgs(http_get=probe, period_seconds=10, failure_threshold=6, timeout_seconds=5),
    )
    return pods.spec(IMAGE_VERIFIER, [container], volumes, pods.Placement(workload=args.workload, priority_class=args.priority_class))
