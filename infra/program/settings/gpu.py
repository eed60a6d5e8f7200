"""The section `gpu`: which GPUs the nodes have, how pods get them, and how much memory one share of one really holds."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from components.contract import GPU_NODES
from infra.program.settings.section import GIB, Bytes, Cores, DnsLabel, Labels, Section, in_gib, quantity

_MIG_PROFILE = r"^[1-7]g\.[0-9]{1,3}gb(\+(me|gfx|me\.all))?$"
_MIG_GIB = {
    "1g.5gb": 4.75,
    "1g.10gb": 9.5,
    "1g.12gb": 10.75,
    "1g.18gb": 16.0,
    "1g.20gb": 19.5,
    "2g.20gb": 19.5,
    "1g.23gb": 20.5,
    "1g.24gb": 20.0,
    "3g.40gb": 39.25,
    "4g.40gb": 39.25,
    "7g.80gb": 79.25,
}
"""Profile to what a partition really has, the least where GPUs differ. Source: `nvidia-smi mig -lgip` of A100 (NVIDIA's MIG user guide),
of H100, H200, H100 NVL, B200 and GB200 (NVIDIA/mig-parted 120, NVIDIA/gpu-operator 903, 1303, 1351)."""
_MIG_USABLE = 5 / 6
"""Part of the memory in the name of any other profile: the least that was seen (1g.24gb of a GB200 has 20)."""


class SharingSettings(Section):
    """How several pods use one GPU. The strategy holds for every GPU node: a node has one."""

    strategy: Literal["none", "time-slicing", "mps", "mig"] = "none"
    """`none`: whole GPUs. `mig`: hardware partitions, memory and faults isolated. `mps`: memory limited by the MPS daemon to an equal
    share, faults shared. `time-slicing`: nothing is isolated; only the sizes that this configuration declares bound the memory."""
    replicas: int | None = Field(default=None, ge=2, le=64)
    """Shares of one GPU, for time-slicing and mps."""
    profile: str | None = Field(default=None, pattern=_MIG_PROFILE)
    """MIG profile such as 1g.10gb, for mig; nodes are partitioned by the operator's MIG manager."""
    memory: Bytes | None = None
    """Memory of one partition, for mig, as `nvidia-smi mig -lgip` shows it; default: a table of profiles, on the safe side."""
    acknowledge_no_isolation: bool = False
    """Must be true for time-slicing: a pod that is not ours can take all memory of a GPU, and a fault ends every pod on it."""

    @model_validator(mode="after")
    def _has_what_its_strategy_needs(self) -> Self:
        replicated = self.strategy in ("time-slicing", "mps")
        problems: list[str] = []
        if replicated and self.replicas is None:
            problems.append(f"replicas: got nothing, want a number of shares for strategy {self.strategy}; set it")
        if not replicated and self.replicas is not None:
            problems.append(f"replicas: got {self.replicas} with strategy {self.strategy}, want it with time-slicing or mps; remove it")
        if self.strategy == "mig" and self.profile is None:
            problems.append("profile: got nothing, want a MIG profile such as 1g.10gb; set it")
        if self.strategy != "mig" and self.profile is not None:
            problems.append(f"profile: got {self.profile} with strategy {self.strategy}, want it with mig; remove it")
        if self.strategy != "mig" and self.memory is not None:
            problems.append(f"memory: got {self.memory} with strategy {self.strategy}, want it with mig; remove it")
        if self.strategy == "time-slicing" and not self.acknowledge_no_isolation:
            problems.append(
                "acknowledgeNoIsolation: got false, want true for time-slicing, which limits no pod's memory; set it, or choose mps or mig"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def partition_memory(self) -> float:
        """Bytes of one MIG partition; 0 without one."""
        if self.profile is None:
            return 0.0
        name = self.profile.partition("+")[0]
        known = _MIG_GIB.get(name, int(re.findall(r"[0-9]+", name)[1]) * _MIG_USABLE) * GIB
        return quantity(self.memory) if self.memory is not None else known


class PodOverhead(Section):
    cpu: Cores = "10m"
    """Added to the CPU request of a pod."""
    memory: Bytes = "16Mi"
    """Added to the memory request and limit of a pod."""


class PriorityClasses(Section):
    gateway: DnsLabel
    """Of the API server and the activator."""
    serving: DnsLabel
    """Of the servers of models."""
    batch: DnsLabel
    """Of work that waits for room; the quota of GPUs leaves room for serving beside it."""


class GpuSettings(Section):
    enabled: bool = False
    """Whether the cluster has GPU nodes."""
    memory: Bytes | None = None
    """Memory of one GPU as nvidia-smi reports it (memory.total), the smallest if nodes differ; required when enabled."""
    allocation: Literal["device-plugin", "dra"] = "device-plugin"
    """How pods ask: for an extended resource of NVIDIA's device plugin, or with a claim (resource.k8s.io/v1) of NVIDIA's DRA driver."""
    sharing: SharingSettings = SharingSettings()
    runtime_class: DnsLabel | Literal[""] | None = None
    """Name of the RuntimeClass that GPU pods use: by default `nvidia`, with `cluster.prefix` where the stack makes it. Empty: they use the
    node's default runtime, as on GKE."""
    nodes: Labels = Field(default=GPU_NODES, min_length=1)
    """Labels of nodes with GPUs, where the RuntimeClass of the stack and the exporter of GPU metrics go. GPU feature discovery sets the
    default one; GKE's own node pools have `cloud.google.com/gke-accelerator`."""
    handler: DnsLabel = "nvidia"
    """Name of the runtime handler in the node's containerd or CRI-O configuration (docs/gpu-nodes.md)."""
    create_runtime_class: bool = True
    """False where the GPU operator owns the RuntimeClass."""
    runtime_mode: Literal["cdi", "auto", "legacy"] = "cdi"
    """How NVIDIA's runtime puts devices into containers: by CDI specifications, by its hook (legacy), or as the node allows (auto)."""
    overhead: PodOverhead = PodOverhead()
    """What a pod of the RuntimeClass costs beyond its containers; the scheduler and the quota count it."""
    priority: int = Field(default=1_000_000, ge=1_000, le=999_000_000)
    """Value of PriorityClass gpu-priority, for serving; the gateway's is 1000 higher, that of batch work a tenth.
    Kubernetes reserves what is above 10^9."""
    priority_classes: PriorityClasses | None = None
    """PriorityClasses that are there; without them the stack makes three."""
    operator_namespace: DnsLabel = "gpu-operator"
    """Where NVIDIA's device plugin runs; its sharing configuration is a ConfigMap there."""

    @model_validator(mode="after")
    def _is_complete_and_possible(self) -> Self:
        problems: list[str] = []
        shared = self.sharing.strategy in ("time-slicing", "mps")
        if self.enabled and self.memory is None:
            problems.append("memory: got nothing, want one GPU's memory such as 46068Mi; take it from nvidia-smi")
        if not self.enabled and self.sharing.strategy != "none":
            problems.append(f"sharing.strategy: got {self.sharing.strategy}, want none while gpu.enabled is false; enable gpu")
        if self.allocation == "dra" and shared:
            problems.append(
                f"allocation: got dra with sharing {self.sharing.strategy}, want device-plugin; "
                "a claim gives each pod a device of its own, so share by mig or the device plugin"
            )
        if self.memory is not None and self.sharing.profile is not None and self.sharing.partition_memory > quantity(self.memory):
            problems.append(f"sharing.profile: got {self.sharing.profile}, want one within gpu.memory {self.memory}; choose a smaller one")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def resource(self) -> str:
        """The extended resource that stands for one GPU, share or partition, by the device plugin's naming rules."""
        if self.sharing.profile is not None:
            return f"nvidia.com/mig-{self.sharing.profile.replace('+', '.')}"
        return "nvidia.com/gpu" if self.sharing.strategy == "none" else "nvidia.com/gpu.shared"

    @property
    def unit_memory(self) -> float:
        """Bytes of GPU memory behind one unit of `resource`; 0 without GPUs.

        A MIG partition has less than its profile names; a share of n has an n-th. The MPS daemon enforces that n-th, time-slicing enforces
        nothing.
        """
        if self.memory is None:
            return 0.0
        if self.sharing.profile is not None:
            return self.sharing.partition_memory
        return quantity(self.memory) / (self.sharing.replicas or 1)

    def enforces(self) -> str:
        """What one unit is, and what keeps it apart from others, as NVIDIA's device plugin or DRA driver does it. Empty without GPUs."""
        if not self.enabled:
            return ""
        size, shares = in_gib(self.unit_memory), self.sharing.replicas
        who = "A claim's device" if self.allocation == "dra" else f"One {self.resource}"
        kept = {
            "none": f"is a whole GPU ({size}): no other pod has it, and a fault ends its own pod alone",
            "mig": f"is a partition ({size}): the hardware bounds its memory, and a fault ends its own pod alone",
            "mps": f"is one of {shares} shares of a GPU: the MPS daemon bounds its memory ({size}), and a fault ends every pod on the GPU",
            "time-slicing": f"is one of {shares} turns on a GPU: nothing bounds its memory ({size} are planned), a fault ends all",
        }
        return f"{who} {kept[self.sharing.strategy]}."

    def describe_unit(self) -> str:
        """For error messages: what one unit holds, and why."""
        where = f"gpu.memory {self.memory}" if self.sharing.strategy == "none" else f"gpu.sharing {self.sharing.strategy}"
        return f"{in_gib(self.unit_memory)} a unit by {where}"
