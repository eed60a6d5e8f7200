"""The section `workloads`: what the cluster asks of the pods of each workload."""

from typing import Literal, Self

from pydantic import Field, model_validator

from infra.program.settings.section import LABEL_KEY, LABEL_VALUE, Annotations, Labels, Section

WorkloadName = Literal[
    "ollama",
    "model-server",
    "api-server",
    "cache-server",
    "metrics-exporter",
    "prometheus",
    "model-sync",
    "context-probe",
    "activator",
    "image-verifier",
]


class TolerationSettings(Section):
    key: str | None = Field(default=None, pattern=LABEL_KEY)
    """Key of the taint; without it, every taint is tolerated."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Exists: whatever the taint's value is."""
    value: str | None = Field(default=None, pattern=LABEL_VALUE)
    """The taint's value, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; without it, every effect is tolerated."""

    @model_validator(mode="after")
    def _is_one_of_kubernetes(self) -> Self:
        if self.key is None and self.operator != "Exists":
            raise ValueError("operator: got Equal without a key, want Exists, which tolerates every taint; set it, or name a key")
        if self.value is not None and self.operator == "Exists":
            raise ValueError(f"value: got {self.value} with operator Exists, want it with Equal only; remove it")
        return self


class WorkloadSettings(Section):
    node_selector: Labels = Field(default={})
    """Labels that a node must have, such as `nvidia.com/gpu.product: NVIDIA-L40S`."""
    tolerations: list[TolerationSettings] = Field(default=[])
    """Taints that do not keep the pods away. That of GPU nodes, `nvidia.com/gpu`, need not be here."""
    zones: Literal["any", "prefer", "require"] = "any"
    """Spread the pods over zones, as a wish or as a condition. Every node should bear `topology.kubernetes.io/zone` then."""
    account_annotations: Annotations = Field(default={})
    """Annotations of the workload's ServiceAccount, by which a cloud gives the workload an identity."""
