"""The namespace and what it may use."""

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from . import registry_auth
from .contract import BATCH_PRIORITY, DATA_LABEL, RESTRICTED, labels, type_token

core = k8s.core.v1


@dataclass(frozen=True, kw_only=True)
class GovernanceArgs:
    """Inputs of Governance. Sums are over the whole namespace."""

    namespace: str
    gpu_quota: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    """Extended resource that pods ask for."""
    gpu_device_class: str | None = None
    """DeviceClass of claims, where pods ask by claims instead; the quota then counts devices of it."""
    gpu_reserved: int = 0
    """GPUs that serving uses; batch work may have the rest of the quota."""
    gpus_per_container: int = 0
    """The most that one container may ask for; 0: as many as the quota has. A maximum needs a default of 0 GPUs, which names the resource
    in every pod: where the cluster's ExtendedResourceToleration is on, as on GKE, pods without a GPU are let onto GPU nodes by it."""
    cpu: str
    """Sum of CPU requests."""
    memory: str
    """Sum of memory requests."""
    ephemeral_storage: str = "64Gi"
    """Sum of requests for the nodes' own disk."""
    pods: int
    claims: int = 20
    """Persistent volume claims."""
    storage: str = "2Ti"
    """Sum of what the claims request."""
    load_balancers: int = 0
    retain: bool
    """Leave the namespace, and so the model claims in it, when the stack is destroyed."""
    batch_priority_class: str = BATCH_PRIORITY
    """PriorityClass of batch pods, whose quota is of their own."""
    registry_auth: pulumi.Input[str] | None = None
    """dockerconfigjson with the logins of private registries; pods use it that are made with the transformation `registry_auth.pulls`."""


class Governance(pulumi.ComponentResource):
    """A namespace under the Pod Security Standard `restricted`, with quotas and defaults for containers that ask for nothing.

    The quota counts `requests.<gpu>` only: the API server accepts `limits.<gpu>` and never counts it. A second quota, for batch
    pods alone, keeps the serving pods' GPUs out of their reach: priority evicts running pods but frees no quota, so a replica that
    comes back could otherwise be refused.

        Governance("governance", GovernanceArgs(namespace="fleet", gpu_quota=8, gpu_resource="nvidia.com/gpu", gpu_reserved=3,
                                                cpu="64", memory="256Gi", pods=50, retain=True))
    """

    namespace: pulumi.Output[str]

    def __init__(self, name: str, args: GovernanceArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("Governance"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        data = {DATA_LABEL: "retain" if args.retain else "disposable"}
        namespace = core.Namespace(
            f"{name}-namespace",
            metadata=k8s.meta.v1.ObjectMetaArgs(name=args.namespace, labels=labels("namespace") | RESTRICTED | data),
            opts=pulumi.ResourceOptions.merge(child, pulumi.ResourceOptions(retain_on_delete=args.retain)),
        )
        self.namespace = namespace.metadata.name
        metadata = k8s.meta.v1.ObjectMetaArgs(namespace=self.namespace, labels=labels("governance"))
        core.ResourceQuota(f"{name}-quota", metadata=metadata, spec=core.ResourceQuotaSpecArgs(hard=_hard(args)), opts=child)
        if (args.gpu_reserved or args.gpus_per_container) and args.gpu_device_class is None:
            core.ResourceQuota(f"{name}-batch", metadata=metadata, spec=_batch(args), opts=child)
        core.LimitRange(f"{name}-defaults", metadata=metadata, spec=core.LimitRangeSpecArgs(limits=[_limits(args)]), opts=child)
        if args.registry_auth is not None:
            registry_auth.pull_secret(f"{name}-registry-auth", self.namespace, args.registry_auth, child)
        self.register_outputs({"namespace": self.namespace})


def _hard(args: GovernanceArgs) -> dict[str, str]:
    gpus = {f"requests.{args.gpu_resource}": str(args.gpu_quota)}
    if args.gpu_device_class is not None:
        # The extended resource stays at zero: nobody gets at GPUs past the claims.
        gpus = {f"requests.{args.gpu_resource}": "0", f"{args.gpu_device_class}.deviceclass.resource.k8s.io/devices": str(args.gpu_quota)}
    return gpus | {
        "requests.cpu": args.cpu,
        "requests.memory": args.memory,
        "requests.ephemeral-storage": args.ephemeral_storage,
        "pods": str(args.pods),
        "persistentvolumeclaims": str(args.claims),
        "requests.storage": args.storage,
        "services.loadbalancers": str(args.load_balancers),
    }


def _batch(args: GovernanceArgs) -> core.ResourceQuotaSpecArgs:
    batch = core.ScopedResourceSelectorRequirementArgs(scope_name="PriorityClass", operator="In", values=[args.batch_priority_class])
    return core.ResourceQuotaSpecArgs(
        hard={f"requests.{args.gpu_resource}": str(max(0, args.gpu_quota - args.gpu_reserved))},
        scope_selector=core.ScopeSelectorArgs(match_expressions=[batch]),
    )


def _limits(args: GovernanceArgs) -> core.LimitRangeItemArgs:
    """Defaults of a container, and the most GPUs that it may have, where that was asked for.

    A `max` without a default becomes the default: every container would ask for that many GPUs. So the default is 0.
    """
    gpu = args.gpu_resource
    capped = bool(args.gpus_per_container) and args.gpu_device_class is None
    none = {gpu: "0"} if capped else {}
    return core.LimitRangeItemArgs(
        type="Container",
        default_request={"cpu": "50m", "memory": "64Mi", "ephemeral-storage": "64Mi", **none},
        default={"memory": "256Mi", "ephemeral-storage": "512Mi", **none},
        max={gpu: str(args.gpus_per_container)} if capped else None,
    )
