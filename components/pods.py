"""Fragments of pods that every workload shares: hardening, probes, resources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from .contract import EXPOSED_ANNOTATION, USER_ID, labels, selector

core = k8s.core.v1
GPU_CLAIM = "gpu"


@dataclass(frozen=True, kw_only=True)
class ResourceArgs:
    """What one container asks for."""

    cpu: str
    """CPU request, a Kubernetes quantity. There is no CPU limit."""
    memory: str
    """Memory request and limit, a Kubernetes quantity."""
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    claims_gpus: bool = False
    """The GPUs come by the pod's claim `gpu` (DRA), not as an extended resource."""


def resources(args: ResourceArgs) -> core.ResourceRequirementsArgs:
    claimed = args.claims_gpus and args.gpus > 0
    gpu = {args.gpu_resource: str(args.gpus)} if args.gpus and not claimed else {}
    return core.ResourceRequirementsArgs(
        requests={"cpu": args.cpu, "memory": args.memory, **gpu},
        limits={"memory": args.memory, **gpu},
        claims=[core.ResourceClaimArgs(name=GPU_CLAIM)] if claimed else None,
    )


def tolerate_gpu_nodes() -> core.TolerationArgs:
    """Of the taint that GPU nodes usually have."""
    return core.TolerationArgs(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")


def container_security() -> core.SecurityContextArgs:
    """The Pod Security Standard `restricted`, and a root file system that cannot be written."""
    return core.SecurityContextArgs(
        allow_privilege_escalation=False,
        read_only_root_filesystem=True,
        run_as_non_root=True,
        capabilities=core.CapabilitiesArgs(drop=["ALL"]),
    )


def http_probe(path: str, port: int, *, period_s: int = 5, failures: int = 3, timeout_s: int = 3) -> core.ProbeArgs:
    return core.ProbeArgs(
        http_get=core.HTTPGetActionArgs(path=path, port=port),
        period_seconds=period_s,
        failure_threshold=failures,
        timeout_seconds=timeout_s,
    )


def env(values: Mapping[str, pulumi.Input[str]]) -> list[core.EnvVarArgs]:
    return [core.EnvVarArgs(name=name, value=value) for name, value in values.items()]


def scratch(name: str = "tmp", path: str = "/tmp", size: str = "64Mi") -> tuple[core.VolumeArgs, core.VolumeMountArgs]:  # noqa: S108
    """A small writable directory, since the root file system is not."""
    volume = core.VolumeArgs(name=name, empty_dir=core.EmptyDirVolumeSourceArgs(size_limit=size))
    return volume, core.VolumeMountArgs(name=name, mount_path=path)


def secret_file(name: str, secret: pulumi.Input[str], path: str) -> tuple[core.VolumeArgs, core.VolumeMountArgs]:
    volume = core.VolumeArgs(name=name, secret=core.SecretVolumeSourceArgs(secret_name=secret, default_mode=0o440))
    return volume, core.VolumeMountArgs(name=name, mount_path=path, read_only=True)


def spec(
    component: str,
    containers: Sequence[core.ContainerArgs],
    volumes: Sequence[core.VolumeArgs],
    *,
    init_containers: Sequence[core.ContainerArgs] = (),
    grace_s: int = 30,
    runtime_class: pulumi.Input[str] | None = None,
    priority_class: pulumi.Input[str] | None = None,
    claim_template: pulumi.Input[str] | None = None,
    restart_policy: str = "Always",
    gpu_toleration: bool = False,
    apart: bool = False,
) -> core.PodSpecArgs:
    """A hardened pod without a service account token, spread over nodes; `apart` also prefers nodes without another pod of the component.

    Never a must: one node may have GPUs for several replicas, and a laptop is one node.
    """
    spread = core.TopologySpreadConstraintArgs(
        max_skew=1,
        topology_key="kubernetes.io/hostname",
        when_unsatisfiable="ScheduleAnyway",
        label_selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(component)),
    )
    return core.PodSpecArgs(
        containers=list(containers),
        init_containers=list(init_containers) or None,
        volumes=list(volumes),
        automount_service_account_token=False,
        enable_service_links=False,
        termination_grace_period_seconds=grace_s,
        runtime_class_name=runtime_class,
        priority_class_name=priority_class,
        resource_claims=[core.PodResourceClaimArgs(name=GPU_CLAIM, resource_claim_template_name=claim_template)]
        if claim_template
        else None,
        restart_policy=restart_policy,
        affinity=core.AffinityArgs(pod_anti_affinity=_apart(component)) if apart else None,
        # A RuntimeClass of the cluster's own may lack it.
        tolerations=[tolerate_gpu_nodes()] if gpu_toleration else None,
        topology_spread_constraints=[spread],
        security_context=core.PodSecurityContextArgs(
            run_as_non_root=True,
            run_as_user=USER_ID,
            run_as_group=USER_ID,
            fs_group=USER_ID,
            # Without OnRootMismatch every start walks the whole model store.
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=core.SeccompProfileArgs(type="RuntimeDefault"),
        ),
    )


def _apart(component: str) -> core.PodAntiAffinityArgs:
    match = k8s.meta.v1.LabelSelectorArgs(match_labels=selector(component))
    term = core.PodAffinityTermArgs(label_selector=match, topology_key="kubernetes.io/hostname")
    return core.PodAntiAffinityArgs(
        preferred_during_scheduling_ignored_during_execution=[core.WeightedPodAffinityTermArgs(weight=100, pod_affinity_term=term)]
    )


def disruptions_are_no_failures() -> k8s.batch.v1.PodFailurePolicyArgs:
    """For a Job that ends at its first failure: a pod whose node was drained or lost has not failed, and is made again."""
    disrupted = k8s.batch.v1.PodFailurePolicyOnPodConditionsPatternArgs(type="DisruptionTarget", status="True")
    return k8s.batch.v1.PodFailurePolicyArgs(rules=[k8s.batch.v1.PodFailurePolicyRuleArgs(action="Ignore", on_pod_conditions=[disrupted])])


def template(component: str, pod: core.PodSpecArgs, annotations: Mapping[str, pulumi.Input[str]] | None = None) -> core.PodTemplateSpecArgs:
    metadata = k8s.meta.v1.ObjectMetaArgs(labels=labels(component), annotations=dict(annotations) if annotations else None)
    return core.PodTemplateSpecArgs(metadata=metadata, spec=pod)


def metadata(
    component: str, namespace: pulumi.Input[str], *, named: bool = True, annotations: Mapping[str, str] | None = None
) -> k8s.meta.v1.ObjectMetaArgs:
    """Object metadata. `named=False` leaves the name to Pulumi, so that a replacement is made before the old one goes."""
    return k8s.meta.v1.ObjectMetaArgs(
        name=component if named else None,
        namespace=namespace,
        labels=labels(component),
        annotations=dict(annotations) if annotations else None,
    )


SKIP_AWAIT = {"pulumi.com/skipAwait": "true"}
"""A Service would wait until no endpoint is unready, that is for as long as the slowest pod loads its model."""


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
) -> k8s.core.v1.Service:
    """A Service under the component's own name. `headless`: clients see every pod's address and balance themselves.

    A `kind` other than ClusterIP is the configuration's wish and is noted on the object, for the policy pack.
    """
    exposed = {} if kind == "ClusterIP" else {EXPOSED_ANNOTATION: kind}
    return core.Service(
        name,
        metadata=metadata(component, namespace, annotations=SKIP_AWAIT | exposed),
        spec=core.ServiceSpecArgs(
            type=kind,
            cluster_ip="None" if headless else None,
            selector=selector(component),
            # A headless Service gives out all addresses, and its clients choose.
            traffic_distribution=None if headless else "PreferSameZone",
            ports=[
                core.ServicePortArgs(name=port_name, port=port, target_port=port, node_port=node_port if index == 0 else None)
                for index, (port_name, port) in enumerate(ports.items())
            ],
        ),
        opts=opts,
    )


def disruption_budget(name: str, component: str, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> None:
    """At most one pod of the component goes away by choice at a time."""
    k8s.policy.v1.PodDisruptionBudget(
        name,
        metadata=metadata(component, namespace),
        spec=k8s.policy.v1.PodDisruptionBudgetSpecArgs(
            max_unavailable=1, selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(component))
        ),
        opts=opts,
    )
