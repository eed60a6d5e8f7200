"""How pods get at GPUs: the runtime's handler and the scheduling priority."""

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from components.contract import PRIORITY_CLASS, labels, type_token


@dataclass(frozen=True, kw_only=True)
class GpuRuntimeArgs:
    """Inputs of GpuRuntime."""

    enabled: bool
    """Whether any node has a GPU; without one there is no RuntimeClass, but the priority stays."""
    create_runtime_class: bool
    """False where the GPU operator owns the RuntimeClass of this name."""
    runtime_class: str
    handler: str
    """Handler in the node's container runtime; a RuntimeClass names one, it installs none."""
    priority: int
    """1..10^9; Kubernetes reserves what is above."""


class GpuRuntime(pulumi.ComponentResource):
    """RuntimeClass and PriorityClass of GPU pods.

    Nodes are found by the label `nvidia.com/gpu.present=true`, which GPU feature discovery sets, and their usual taint is tolerated.
    """

    runtime_class: pulumi.Output[str] | None
    """None without GPUs: pods then use the node's default runtime."""
    priority_class: pulumi.Output[str]

    def __init__(self, name: str, args: GpuRuntimeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("GpuRuntime"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.runtime_class = None
        if args.enabled and args.create_runtime_class:
            toleration = k8s.core.v1.TolerationArgs(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
            runtime_class = k8s.node.v1.RuntimeClass(
                f"{name}-runtime",
                metadata=k8s.meta.v1.ObjectMetaArgs(name=args.runtime_class, labels=labels("gpu-runtime")),
                handler=args.handler,
                scheduling=k8s.node.v1.SchedulingArgs(node_selector={"nvidia.com/gpu.present": "true"}, tolerations=[toleration]),
                opts=child,
            )
            self.runtime_class = runtime_class.metadata.name
        elif args.enabled:
            self.runtime_class = pulumi.Output.from_input(args.runtime_class)
        priority_class = k8s.scheduling.v1.PriorityClass(
            f"{name}-priority",
            metadata=k8s.meta.v1.ObjectMetaArgs(name=PRIORITY_CLASS, labels=labels("gpu-runtime")),
            value=args.priority,
            global_default=False,
            description="Pods that serve models; they go before batch work",
            opts=child,
        )
        self.priority_class = priority_class.metadata.name
        self.register_outputs({"runtime_class": self.runtime_class, "priority_class": self.priority_class})
