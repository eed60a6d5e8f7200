"""Pods and their templates: hardening, placement, and how a component's Deployment is made from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import pulumi
import pulumi_kubernetes as k8s

from .containers import GPU_CLAIM, env
from .contract import LOG_LEVELS, OLLAMA, labels, selector
from .objects import metadata
from .workload import ORDINARY, WorkloadArgs, tolerations

apps = k8s.apps.v1
batch = k8s.batch.v1
core = k8s.core.v1
_NODE = "kubernetes.io/hostname"
_ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which nodes take a pod, and what it may use there."""

    workload: WorkloadArgs = ORDINARY
    runtime_class: pulumi.Input[str] | None = None
    priority_class: pulumi.Input[str] | None = None
    claim_template: pulumi.Input[str] | None = None
    """ResourceClaimTemplate of the pod's GPUs, where they are claimed."""
    gpu_toleration: bool = False
    """Tolerate the taint of GPU nodes. The RuntimeClass does so, too, but one that is not ours may not."""
    apart: bool = False
    """Prefer nodes without another pod of the component."""


ANYWHERE = Placement()


def tolerate_gpu_nodes() -> core.TolerationArgs:
    """A toleration of the taint that GPU nodes usually have."""
    return core.TolerationArgs(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")


def spec(
    component: str,
    containers: Sequence[core.ContainerArgs],
    volumes: Sequence[core.VolumeArgs],
    placement: Placement = ANYWHERE,
    *,
    init_containers: Sequence[core.ContainerArgs] = (),
    grace_s: int = 30,
    restart_policy: str = "Always",
) -> core.PodSpecArgs:
    """A hardened pod, which runs as the account of its component and has no token of it."""
    for each in (*containers, *init_containers):
        if said := _log_level(each, placement.workload.log_level):
            each.env = [*cast("list[core.EnvVarArgs]", each.env or []), *env(said)]
    claims = [core.PodResourceClaimArgs(name=GPU_CLAIM, resource_claim_template_name=placement.claim_template)]
    return core.PodSpecArgs(
        containers=list(containers),
        init_containers=list(init_containers) or None,
        volumes=list(volumes),
        service_account_name=component,
        automount_service_account_token=False,
        enable_service_links=False,
        termination_grace_period_seconds=grace_s,
        runtime_class_name=placement.runtime_class,
        priority_class_name=placement.priority_class,
        resource_claims=claims if placement.claim_template else None,
        restart_policy=restart_policy,
        node_selector=dict(placement.workload.node_selector) or None,
        affinity=core.AffinityArgs(pod_anti_affinity=_apart(component)) if placement.apart else None,
        tolerations=_tolerations(placement) or None,
        topology_spread_constraints=_spread(component, placement.workload),
        security_context=_security(placement.workload.user_id),
    )


def _log_level(container: core.ContainerArgs, level: str) -> dict[str, str]:
    """Nothing for the level that they have by themselves: pods of before stay as they are."""
    if level == "info":
        return {}
    if container.name == OLLAMA:
        return {"OLLAMA_DEBUG": "1"} if level == "debug" else {}
    variable = LOG_LEVELS.get(str(container.name))
    return {variable: level} if variable else {}


def _tolerations(placement: Placement) -> list[core.TolerationArgs]:
    return [*([tolerate_gpu_nodes()] if placement.gpu_toleration else []), *tolerations(placement.workload)]


def _spread(component: str, workload: WorkloadArgs) -> list[core.TopologySpreadConstraintArgs]:
    """Spread over nodes is a wish: one node may have GPUs for several replicas, and a laptop is one node."""

    def over(key: str, otherwise: str) -> core.TopologySpreadConstraintArgs:
        match = k8s.meta.v1.LabelSelectorArgs(match_labels=selector(component))
        return core.TopologySpreadConstraintArgs(max_skew=1, topology_key=key, when_unsatisfiable=otherwise, label_selector=match)

    zones = {None: [], "prefer": [over(_ZONE, "ScheduleAnyway")], "require": [over(_ZONE, "DoNotSchedule")]}
    return [over(_NODE, "ScheduleAnyway"), *zones[workload.zones]]


def _apart(component: str) -> core.PodAntiAffinityArgs:
    match = k8s.meta.v1.LabelSelectorArgs(match_labels=selector(component))
    term = core.PodAffinityTermArgs(label_selector=match, topology_key=_NODE)
    return core.PodAntiAffinityArgs(
        preferred_during_scheduling_ignored_during_execution=[core.WeightedPodAffinityTermArgs(weight=100, pod_affinity_term=term)]
    )


def _security(user_id: int | None) -> core.PodSecurityContextArgs:
    return core.PodSecurityContextArgs(
        run_as_non_root=True,
        run_as_user=user_id,
        run_as_group=user_id,
        fs_group=user_id,
        # Without OnRootMismatch every start walks the whole model store.
        fs_group_change_policy="OnRootMismatch",
        seccomp_profile=core.SeccompProfileArgs(type="RuntimeDefault"),
    )


def template(component: str, pod: core.PodSpecArgs, annotations: Mapping[str, pulumi.Input[str]] | None = None) -> core.PodTemplateSpecArgs:
    own = k8s.meta.v1.ObjectMetaArgs(labels=labels(component), annotations=dict(annotations) if annotations else None)
    return core.PodTemplateSpecArgs(metadata=own, spec=pod)


def deployment(
    name: str,
    component: str,
    namespace: pulumi.Input[str],
    pod: core.PodSpecArgs,
    opts: pulumi.ResourceOptions,
    *,
    replicas: int | None = 1,
    annotations: Mapping[str, pulumi.Input[str]] | None = None,
    noted: Mapping[str, str] | None = None,
    strategy: apps.DeploymentStrategyArgs | None = None,
) -> apps.Deployment:
    """A Deployment under the component's own name. `annotations` are those of its pods, `noted` its own."""
    return apps.Deployment(
        name,
        metadata=metadata(component, namespace, annotations=noted),
        spec=apps.DeploymentSpecArgs(
            replicas=replicas,
            strategy=strategy,
            selector=k8s.meta.v1.LabelSelectorArgs(match_labels=selector(component)),
            template=template(component, pod, annotations),
        ),
        opts=opts,
    )


def scaled_by_others(opts: pulumi.ResourceOptions) -> pulumi.ResourceOptions:
    """For what an autoscaler scales: the number counts at the creation alone. Were it left out, Kubernetes would take 1 for it.

    The provider leaves an ignored field alone that has another owner, and sends the one in the cluster until it has.
    """
    return pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(ignore_changes=["spec.replicas"]))


def disruptions_are_no_failures() -> batch.PodFailurePolicyArgs:
    """For a Job that ends at its first failure: a pod whose node was drained or lost has not failed, and is made again."""
    disrupted = batch.PodFailurePolicyOnPodConditionsPatternArgs(type="DisruptionTarget", status="True")
    return batch.PodFailurePolicyArgs(rules=[batch.PodFailurePolicyRuleArgs(action="Ignore", on_pod_conditions=[disrupted])])
