"""The namespace and what it may use."""

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from components.contract import DATA_LABEL, labels, type_token


@dataclass(frozen=True, kw_only=True)
class GovernanceArgs:
    """Inputs of Governance."""

    namespace: str
    gpu_quota: int
    gpu_resource: str
    cpu: str
    """Sum of CPU requests."""
    memory: str
    """Sum of memory requests."""
    pods: int
    retain: bool
    """Leave the namespace, and so the model claims in it, when the stack is destroyed."""


class Governance(pulumi.ComponentResource):
    """A namespace under the Pod Security Standard `restricted`, with a quota and defaults for containers that ask for nothing.

    The quota counts `requests.<gpu>` only: the API server accepts `limits.<gpu>` and never counts it. The defaults name no
    GPU: a default GPU would be given to every container, also to those that cannot use one.
    """

    namespace: pulumi.Output[str]

    def __init__(self, name: str, args: GovernanceArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("Governance"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
        data = {DATA_LABEL: "retain" if args.retain else "disposable"}
        namespace = k8s.core.v1.Namespace(
            f"{name}-namespace",
            metadata=k8s.meta.v1.ObjectMetaArgs(name=args.namespace, labels=labels("namespace") | security | data),
            opts=pulumi.ResourceOptions.merge(child, pulumi.ResourceOptions(retain_on_delete=args.retain)),
        )
        self.namespace = namespace.metadata.name
        metadata = k8s.meta.v1.ObjectMetaArgs(namespace=self.namespace, labels=labels("governance"))
        k8s.core.v1.ResourceQuota(
            f"{name}-quota",
            metadata=metadata,
            spec=k8s.core.v1.ResourceQuotaSpecArgs(
                hard={
                    f"requests.{args.gpu_resource}": str(args.gpu_quota),
                    "requests.cpu": args.cpu,
                    "requests.memory": args.memory,
                    "pods": str(args.pods),
                }
            ),
            opts=child,
        )
        default = k8s.core.v1.LimitRangeItemArgs(
            type="Container", default_request={"cpu": "50m", "memory": "64Mi"}, default={"memory": "256Mi"}
        )
        k8s.core.v1.LimitRange(
            f"{name}-defaults", metadata=metadata, spec=k8s.core.v1.LimitRangeSpecArgs(limits=[default]), opts=child
        )  # fmt: skip
        self.register_outputs({"namespace": self.namespace})
