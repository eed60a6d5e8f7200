"""What the objects of all components share: metadata, and the Services and disruption budgets that several of them have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pulumi
import pulumi_kubernetes as k8s

from .contract import EXPOSED_ANNOTATION, labels, selector
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
SKIP_AWAIT = {"pulumi.com/skipAwait": "true"}
"""A Service would wait until no endpoint is unready, that is for as long as the slowest pod loads its model."""


def metadata(
    component: str,
    namespace: pulumi.Input[str],
    *,
    named: bool = True,
    annotations: Mapping[str, str] | None = None,
    suffix: str = "",
) -> k8s.meta.v1.ObjectMetaArgs:
    """Object metadata. `named=False` leaves the name to Pulumi, so that a replacement is made before the old one goes. `suffix`: of a
    further object of the component."""
    return k8s.meta.v1.ObjectMetaArgs(
        name=f"{component}{suffix}" if named else None,
        namespace=namespace,
        labels=labels(component),
        annotations=dict(annotations) if annotations else None,
    )


@dataclass(frozen=True, kw_only=True)
class ExposureArgs:
    """How clients outside of the cluster reach a Service of type NodePort or LoadBalancer."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    """What the maker of load balancers is told."""
    load_balancer_class: str | None = None
    source_ranges: Sequence[str] = ()
    """Addresses that the load balancer lets through; empty is all."""
    external_traffic_policy: Literal["Cluster", "Local"] | None = None
    """Local keeps the addresses of clients."""
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = None
    """Whether the Service has addresses of both families. None: of the cluster's first one alone."""


def service(
    name: str,
    component: str,
    namespace: pulumi.Input[str],
    ports: Mapping[str, int],
    opts: pulumi.ResourceOptions,
    *,
    kind: str = "ClusterIP",
    node_port: int | None = None,
    headless: bool = False,
    exposure: ExposureArgs | None = None,
) -> core.Service:
    """A Service under the component's own name. `headless`: clients see every pod's address and balance themselves.

    A `kind` other than ClusterIP is the configuration's wish and is noted on the object, for the policy pack.
    """
    exposed = {} if kind == "ClusterIP" else {EXPOSED_ANNOTATION: kind}
    outside = exposure or ExposureArgs()
    return core.Service(
        name,
        metadata=metadata(component, namespace, annotations={**outside.annotations, **SKIP_AWAIT, **exposed}),
        spec=core.ServiceSpecArgs(
            type=kind,
            cluster_ip="None" if headless else None,
            selector=selector(component),
            # A headless Service gives out all addresses, and its clients choose. PreferSameZone says the same from Kubernetes 1.34 on.
            traffic_distribution=None if headless else "PreferClose",
            external_traffic_policy=outside.external_traffic_policy,
            ip_family_policy=outside.ip_family_policy,
            load_balancer_class=outside.load_balancer_class,
            load_balancer_source_ranges=list(outside.source_ranges) or None,
            ports=[
                core.ServicePortArgs(name=port_name, port=port, target_port=port, node_port=node_port if index == 0 else None)
                for index, (port_name, port) in enumerate(ports.items())
            ],
        ),
        opts=opts,
    )


def every_pod(name: str, service_name: str, component: str, namespace: pulumi.Input[str], port: int, opts: pulumi.ResourceOptions) -> None:
    """A headless Service with the address of every pod of a component, also of those that are not ready, or drain, for its metrics."""
    core.Service(
        name,
        metadata=k8s.meta.v1.ObjectMetaArgs(name=service_name, namespace=namespace, labels=labels(component), annotations=SKIP_AWAIT),
        spec=core.ServiceSpecArgs(
            cluster_ip="None",
            selector=selector(component),
            publish_not_ready_addresses=True,
            ports=[core.ServicePortArgs(name="metrics", port=port, target_port=port)],
        ),
        opts=opts,
    )


def account(
    name: str, component: str, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions, workload: WorkloadArgs = ORDINARY
) -> pulumi.ResourceOptions:
    """The ServiceAccount of a component's pods, under the component's own name. No pod gets a token of it by itself.

    Returns the options of what runs as it, which comes after it.
    """
    known_by = metadata(component, namespace, annotations=workload.account_annotations)
    made = core.ServiceAccount(name, metadata=known_by, automount_service_account_token=False, opts=opts)
    return pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[made]))


def disruption_budget(name: str, component: str, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> None:
    """At most one ready pod of the component goes away by choice at a time."""
    k8s.policy.v1.PodDisruptionBudget(
        name,
        metadata=metadata(component, namespace),
        spec=k8s.policy.v1.PodDisruptionBudgetSpecArgs(
            max_unavailable=1,
            # A pod that is not ready serves nobody: it must not keep a node from being drained.
            unhealthy_pod_eviction_policy="AlwaysAllow",
            selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(component)),
        ),
        opts=opts,
    )
