"""What a cluster asks of the pods of one workload: which nodes they may use, as whom they run, how a cloud knows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pulumi_kubernetes as k8s

from .contract import USER_ID

core = k8s.core.v1


@dataclass(frozen=True, kw_only=True)
class TolerationArgs:
    """A taint that does not keep the pods away."""

    key: str | None = None
    """None: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None: every effect."""


@dataclass(frozen=True, kw_only=True)
class WorkloadArgs:
    """Which nodes take the pods of a workload, and who the pods are there."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that a node must have, such as `nvidia.com/gpu.product`."""
    tolerations: Sequence[TolerationArgs] = ()
    zones: Literal["prefer", "require"] | None = None
    """Spread over zones (`topology.kubernetes.io/zone`), as a wish or as a condition. Every node should have the label then."""
    account_annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotations of the workload's ServiceAccount, by which a cloud gives it an identity."""
    user_id: int | None = USER_ID
    """User and group of the pods. None: the platform assigns them, as OpenShift does."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least of what our services say of themselves; Ollama says more with `debug`."""


ORDINARY = WorkloadArgs()


def tolerations(args: WorkloadArgs) -> list[core.TolerationArgs]:
    return [core.TolerationArgs(key=each.key, operator=each.operator, value=each.value, effect=each.effect) for each in args.tolerations]
