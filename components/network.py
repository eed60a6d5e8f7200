"""Network policies: everything is denied but the edges of the contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pulumi
import pulumi_kubernetes as k8s

from .contract import (
    ACTIVATOR,
    API_SERVER,
    COMPONENTS,
    CONTEXT_PROBE,
    DNS_CLIENTS,
    KUBERNETES_PORTS,
    MODEL_SERVER,
    MODEL_WRITER,
    POOLS_ANNOTATION,
    PORTS,
    PROMETHEUS,
    SCRAPED,
    Edge,
    edges,
    every,
    kind_of,
    labels,
    selector,
    type_token,
)

net = k8s.networking.v1


@dataclass(frozen=True, kw_only=True)
class OriginArgs:
    """Where the writer of models may connect to."""

    cidr: str
    port: int


@dataclass(frozen=True, kw_only=True)
class PodsArgs:
    """Pods of another namespace."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Without any, every pod of the namespace."""


@dataclass(frozen=True, kw_only=True)
class DnsArgs:
    """Where names are looked up. The defaults are those of kubeadm and of most distributions."""

    pods: PodsArgs = field(default_factory=lambda: PodsArgs(namespace="kube-system", labels={"k8s-app": "kube-dns"}))
    port: int = 53
    """Of the pods themselves, beside 53."""
    cidrs: Sequence[str] = ()
    """Addresses that answer on the nodes, as NodeLocal DNSCache does."""


@dataclass(frozen=True, kw_only=True)
class PoolArgs:
    """A pool of others that the API server may connect to."""

    cidrs: Sequence[str] = ()
    port: int
    """At these networks."""
    pods: PodsArgs | None = None
    pods_port: int | None = None
    """Port of the pods themselves; None: the same."""


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """Inputs of Network."""

    namespace: pulumi.Input[str]
    client_cidrs: Sequence[str]
    """Addresses that may connect to the API server."""
    client_pods: Sequence[PodsArgs] = ()
    """Pods that may connect to the API server."""
    dns: DnsArgs = field(default_factory=DnsArgs)
    prometheus_namespace: str
    """The one other namespace whose pods may read metrics."""
    origins: Sequence[OriginArgs] = ()
    """Sources of models."""
    origins_have_names: bool = False
    """The writer looks names up."""
    pools: Sequence[PoolArgs] = ()
    """Pools of others behind the API server."""
    kubernetes_cidrs: Sequence[str] = ()
    """Addresses of the cluster's API server, for the activator; without them there is none."""
    prometheus: bool = False
    """The stack has a Prometheus of its own."""
    prometheus_clients: Sequence[PodsArgs] = ()
    """Pods that may ask that Prometheus."""
    model_servers: Sequence[str] = (MODEL_SERVER,)
    """Components of the model servers (`ModelServerArgs.component`)."""
    contexts_are_probed: bool = True
    """False where an autoscaler owns the fleet's replicas: no probe runs, and a policy for it would select nothing."""


class Network(pulumi.ComponentResource):
    """Default deny for the namespace, and one policy a component that allows its edges in both directions.

    Policies hold only where the cluster's network plugin enforces them.

        Network("network", NetworkArgs(namespace="fleet", client_cidrs=["10.0.0.0/8"], prometheus_namespace="monitoring"))
    """

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("Network"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        default_deny(f"{name}-default-deny", args.namespace, child)
        optional = {
            ACTIVATOR: args.kubernetes_cidrs,
            PROMETHEUS: args.prometheus,
            CONTEXT_PROBE: args.contexts_are_probed,
        }
        named = [component for component in (*COMPONENTS, ACTIVATOR, PROMETHEUS) if optional.get(component, True)]
        deployed = [component for name in named for component in every(name, args.model_servers)]
        open_ = [edge for edge in edges(args.model_servers) if edge.source in deployed and edge.target in deployed]
        for component in deployed:
            net.NetworkPolicy(
                f"{name}-{component}",
                metadata=_metadata(component, args),
                spec=_policy(component, args, open_),
                opts=child,
            )
        self.register_outputs({})


def _metadata(component: str, args: NetworkArgs) -> k8s.meta.v1.ObjectMetaArgs:
    pools = [named for pool in args.pools for named in _named(pool)] if component == API_SERVER else []
    noted = {POOLS_ANNOTATION: " ".join(pools)} if pools else None
    return k8s.meta.v1.ObjectMetaArgs(name=component, namespace=args.namespace, labels=labels("network"), annotations=noted)


def _policy(component: str, args: NetworkArgs, open_: Sequence[Edge]) -> net.NetworkPolicySpecArgs:
    ingress = [
        net.NetworkPolicyIngressRuleArgs(from_=[_pods(edge.source)], ports=[_port(edge.port)])
        for edge in open_
        if edge.target == component
    ]  # fmt: skip
    if component == API_SERVER:
        clients = [*addresses(args.client_cidrs), *(_namespace(each.namespace, each.labels) for each in args.client_pods)]
        ingress.append(net.NetworkPolicyIngressRuleArgs(from_=clients, ports=[_port(PORTS[API_SERVER])]))
    if component == PROMETHEUS and args.prometheus_clients:
        clients = [_namespace(each.namespace, each.labels) for each in args.prometheus_clients]
        ingress.append(net.NetworkPolicyIngressRuleArgs(from_=clients, ports=[_port(PORTS[PROMETHEUS])]))
    if (port := SCRAPED.get(kind_of(component))) is not None:
        ingress.append(net.NetworkPolicyIngressRuleArgs(from_=[_namespace(args.prometheus_namespace)], ports=[_port(port)]))
    egress = [
        net.NetworkPolicyEgressRuleArgs(to=[_pods(edge.target)], ports=[_port(edge.port)])
        for edge in open_
        if edge.source == component
    ]  # fmt: skip
    if component == MODEL_WRITER:
        egress += [net.NetworkPolicyEgressRuleArgs(to=addresses([origin.cidr]), ports=[_port(origin.port)]) for origin in args.origins]
    if component == API_SERVER:
        egress += [rule for pool in args.pools for rule in _to_pool(pool)]
    if component == ACTIVATOR:
        cluster = addresses(args.kubernetes_cidrs)
        egress.append(net.NetworkPolicyEgressRuleArgs(to=cluster, ports=[_port(number) for number in KUBERNETES_PORTS]))
    if kind_of(component) in DNS_CLIENTS or (component == MODEL_WRITER and args.origins_have_names):
        egress.append(dns_egress(args.dns))
    return net.NetworkPolicySpecArgs(
        pod_selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(component)),
        policy_types=["Ingress", "Egress"],
        ingress=ingress,
        egress=egress,
    )


def _named(pool: PoolArgs) -> list[str]:
    pods = [f"{pool.pods.namespace}:{pool.pods_port or pool.port}"] if pool.pods is not None else []
    return [f"{cidr}:{pool.port}" for cidr in pool.cidrs] + pods


def _to_pool(pool: PoolArgs) -> list[net.NetworkPolicyEgressRuleArgs]:
    rules = [net.NetworkPolicyEgressRuleArgs(to=addresses(pool.cidrs), ports=[_port(pool.port)])] if pool.cidrs else []
    if pool.pods is not None:
        to = [_namespace(pool.pods.namespace, pool.pods.labels)]
        rules.append(net.NetworkPolicyEgressRuleArgs(to=to, ports=[_port(pool.pods_port or pool.port)]))
    return rules


def default_deny(name: str, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> None:
    """What no other policy of the namespace allows is denied, in both directions."""
    net.NetworkPolicy(
        name,
        metadata=k8s.meta.v1.ObjectMetaArgs(name="default-deny", namespace=namespace, labels=labels("network")),
        spec=net.NetworkPolicySpecArgs(pod_selector=k8s.meta.v1.LabelSelectorArgs(), policy_types=["Ingress", "Egress"]),
        opts=opts,
    )


def dns_egress(dns: DnsArgs) -> net.NetworkPolicyEgressRuleArgs:
    """To the cluster's DNS: its pods, and what answers for them on the nodes."""
    to = [_namespace(dns.pods.namespace, dns.pods.labels), *addresses(dns.cidrs)]
    ports = dict.fromkeys((53, dns.port))
    return net.NetworkPolicyEgressRuleArgs(to=to, ports=[_port(number, protocol) for number in ports for protocol in ("UDP", "TCP")])


def _port(number: int, protocol: str = "TCP") -> net.NetworkPolicyPortArgs:
    return net.NetworkPolicyPortArgs(port=number, protocol=protocol)


def addresses(cidrs: Sequence[str]) -> list[net.NetworkPolicyPeerArgs]:
    """Peers of one rule: whoever is in one of the networks, IPv4 or IPv6."""
    return [net.NetworkPolicyPeerArgs(ip_block=net.IPBlockArgs(cidr=cidr)) for cidr in cidrs]


def _pods(component: str) -> net.NetworkPolicyPeerArgs:
    return net.NetworkPolicyPeerArgs(pod_selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(component)))


def _namespace(name: str, pods: Mapping[str, str] | None = None) -> net.NetworkPolicyPeerArgs:
    """Pods of another namespace; both selectors in one peer, so both must hold."""
    return net.NetworkPolicyPeerArgs(
        namespace_selector=k8s.meta.v1.LabelSelectorArgs(match_labels={"kubernetes.io/metadata.name": name}),
        pod_selector=k8s.meta.v1.LabelSelectorArgs(match_labels=dict(pods)) if pods else None,
    )
