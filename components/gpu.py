"""How pods get at GPUs: the runtime, the scheduling priority, shares and claims."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pulumi
import pulumi_kubernetes as k8s

from . import node_runtime, pods
from .contract import BATCH_PRIORITY, GATEWAY_PRIORITY, GPU_MEMORY_ANNOTATION, GPU_NODES, PRIORITY_CLASS, labels, type_token

meta = k8s.meta.v1
SHARING_CONFIG = "modelfleet-gpu-sharing"
"""ConfigMap that the device plugin reads, and the name of the one configuration in it."""
CLAIM_TEMPLATE = "ollama-gpu"


@dataclass(frozen=True, kw_only=True)
class SharingArgs:
    """How several pods use one GPU, for NVIDIA's device plugin."""

    strategy: Literal["time-slicing", "mps", "mig"]
    operator_namespace: str
    """Where the device plugin runs and reads its ConfigMap."""
    replicas: int | None = None
    """Shares of one GPU; None for mig."""


@dataclass(frozen=True, kw_only=True)
class ClaimArgs:
    """The devices of one pod, for NVIDIA's DRA driver."""

    namespace: pulumi.Input[str]
    count: int
    mig_profile: str | None = None
    """Ask for a partition of this profile; None for whole GPUs."""


@dataclass(frozen=True, kw_only=True)
class PriorityClassesArgs:
    """Names of PriorityClasses of the cluster's own."""

    gateway: str
    serving: str
    batch: str


@dataclass(frozen=True, kw_only=True)
class GpuRuntimeArgs:
    """Inputs of GpuRuntime."""

    enabled: bool = True
    """Whether any node has a GPU; without one there is no RuntimeClass, but the priorities stay."""
    create_runtime_class: bool = True
    """False where the GPU operator owns the RuntimeClass of this name."""
    runtime_class: str = "nvidia"
    """Empty: GPU pods use the node's default runtime, as on GKE."""
    handler: str = "nvidia"
    """Handler in the node's container runtime; a RuntimeClass names one, it installs none."""
    priority: int = 1_000_000
    """Of serving, 1000..999,000,000."""
    prefix: str = ""
    """What the names of the PriorityClasses and of the sharing configuration begin with, where a cluster has several fleets."""
    priority_classes: PriorityClassesArgs | None = None
    """Classes that are there. Then none is made."""
    nodes: Mapping[str, str] = field(default_factory=lambda: dict(GPU_NODES))
    """Labels of nodes with GPUs."""
    overhead: Mapping[str, str] = field(default_factory=lambda: {"cpu": "10m", "memory": "16Mi"})
    """What a pod costs beyond its containers."""
    sharing: SharingArgs | None = None
    claim: ClaimArgs | None = None


class GpuRuntime(pulumi.ComponentResource):
    """RuntimeClass, three PriorityClasses, and what the chosen way of sharing or claiming GPUs needs.

    Outputs are plain names: what uses them should depend on the component, so that the classes are there first.

    By default nodes are found by the label `nvidia.com/gpu.present=true`, which GPU feature discovery sets. Their usual taint is tolerated.
    The gateway comes before serving: without it no replica is reached. Serving evicts batch work; batch work evicts nothing.

        runtime = GpuRuntime("gpu", GpuRuntimeArgs())
        pod = k8s.core.v1.PodSpecArgs(containers=[], runtime_class_name=runtime.runtime_class, priority_class_name=runtime.priority_class)
        k8s.core.v1.Pod("pod", spec=pod, opts=pulumi.ResourceOptions(depends_on=[runtime]))
    """

    runtime_class: pulumi.Output[str] | None
    """None without GPUs or a class of that name: pods then use the node's default runtime."""
    priority_class: pulumi.Output[str]
    """For pods that serve models."""
    gateway_priority_class: pulumi.Output[str]
    batch_priority_class: pulumi.Output[str]
    claim_template: pulumi.Output[str] | None
    """ResourceClaimTemplate to name in a pod; None where pods ask for an extended resource."""

    def __init__(self, name: str, args: GpuRuntimeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("GpuRuntime"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.runtime_class = _runtime_class(f"{name}-runtime", args, child) if args.enabled and args.runtime_class else None
        self.priority_class, self.gateway_priority_class, self.batch_priority_class = _priorities(name, args, child)
        if args.sharing is not None:
            _sharing(f"{name}-sharing", args.prefix + SHARING_CONFIG, args.sharing, child)
        self.claim_template = claim_template(f"{name}-claim", CLAIM_TEMPLATE, args.claim, child) if args.claim is not None else None
        self.register_outputs(
            {
                "runtime_class": self.runtime_class,
                "priority_class": self.priority_class,
                "gateway_priority_class": self.gateway_priority_class,
                "batch_priority_class": self.batch_priority_class,
                "claim_template": self.claim_template,
            }
        )


def _sharing(name: str, config: str, args: SharingArgs, opts: pulumi.ResourceOptions) -> None:
    """What NVIDIA's device plugin reads."""
    annotations = {GPU_MEMORY_ANNOTATION: "not-isolated"} if args.strategy == "time-slicing" else None
    k8s.core.v1.ConfigMap(
        name,
        metadata=meta.ObjectMetaArgs(name=config, namespace=args.operator_namespace, labels=labels("gpu-runtime"), annotations=annotations),
        data={config: node_runtime.device_plugin_config(args.strategy, args.replicas)},
        opts=opts,
    )


def _replaced(opts: pulumi.ResourceOptions, *fields: str) -> pulumi.ResourceOptions:
    """For fields that cannot change in place; the name is taken until the old object is gone. Running pods keep what they have."""
    return pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(delete_before_replace=True, replace_on_changes=list(fields)))


def _runtime_class(name: str, args: GpuRuntimeArgs, opts: pulumi.ResourceOptions) -> pulumi.Output[str]:
    """The class's name, as a plain value: see `_name`."""
    if not args.create_runtime_class:
        return _name(args.runtime_class)
    k8s.node.v1.RuntimeClass(
        name,
        metadata=meta.ObjectMetaArgs(name=args.runtime_class, labels=labels("gpu-runtime")),
        handler=args.handler,
        overhead=k8s.node.v1.OverheadArgs(pod_fixed=dict(args.overhead)),
        scheduling=k8s.node.v1.SchedulingArgs(node_selector=dict(args.nodes), tolerations=[pods.tolerate_gpu_nodes()]),
        opts=_replaced(opts, "handler"),
    )
    return _name(args.runtime_class)


def _name(text: str) -> pulumi.Output[str]:
    """A name that does not depend on its object.

    When Pulumi deletes an object before it makes the object anew, it also replaces every object that reads a property of the first one.
    A StatefulSet that read the name of its PriorityClass was replaced together with the class, and so were the claims of its replicas.
    So users of the name depend on the component instead.
    """
    return pulumi.Output.from_input(text)


def _priorities(
    name: str, args: GpuRuntimeArgs, opts: pulumi.ResourceOptions
) -> tuple[pulumi.Output[str], pulumi.Output[str], pulumi.Output[str]]:
    """Names of the classes of serving, gateway and batch."""
    if (own := args.priority_classes) is not None:
        return _name(own.serving), _name(own.gateway), _name(own.batch)
    serving = args.priority

    def tier(suffix: str, constant: str, value: int, policy: str | None, description: str) -> pulumi.Output[str]:
        class_name = args.prefix + constant
        k8s.scheduling.v1.PriorityClass(
            f"{name}-{suffix}",
            metadata=meta.ObjectMetaArgs(name=class_name, labels=labels("gpu-runtime")),
            value=value,
            preemption_policy=policy,
            global_default=False,
            description=description,
            opts=_replaced(opts, "value", "preemptionPolicy"),
        )
        return _name(class_name)

    # Kubernetes' default. Said aloud it would be a change of an object that cannot change, for stacks that were made without it.
    evicts = None
    return (
        tier("priority", PRIORITY_CLASS, serving, evicts, "Pods that serve models; they go before batch work"),
        tier("gateway-priority", GATEWAY_PRIORITY, serving + 1000, evicts, "The door for clients; it goes before what it leads to"),
        tier("batch-priority", BATCH_PRIORITY, serving // 10, "Never", "Work that waits for room and makes none"),
    )


def claim_template(name: str, template: str, args: ClaimArgs, opts: pulumi.ResourceOptions) -> pulumi.Output[str]:
    """A ResourceClaimTemplate of the name `template`, which each pod gets a claim of its own by."""
    # The SDK has no type for resource.k8s.io/v1 yet; its v1beta2 is not served where only v1 is.
    k8s.apiextensions.CustomResource(
        name,
        api_version="resource.k8s.io/v1",
        kind="ResourceClaimTemplate",
        metadata=meta.ObjectMetaArgs(name=template, namespace=args.namespace, labels=labels("gpu-runtime")),
        spec={"spec": claim(args.count, args.mig_profile)},
        opts=_replaced(opts, "spec"),
    )
    return _name(template)


def device_class(mig_profile: str | None) -> str:
    """The DeviceClass of NVIDIA's DRA driver for whole GPUs, or for MIG partitions."""
    return "gpu.nvidia.com" if mig_profile is None else "mig.nvidia.com"


def claim(count: int, mig_profile: str | None) -> dict[str, Any]:
    """A ResourceClaim's spec: exactly `count` devices of one kind. Source: resource.k8s.io/v1, attributes of NVIDIA's DRA driver."""
    exactly: dict[str, Any] = {"deviceClassName": device_class(mig_profile), "allocationMode": "ExactCount", "count": count}
    if mig_profile is not None:
        exactly["selectors"] = [{"cel": {"expression": f"device.attributes['gpu.nvidia.com'].profile == '{mig_profile}'"}}]
    return {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}
