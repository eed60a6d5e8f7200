"""Two tiers for models: node-local and fast, shared and warm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pulumi
import pulumi_kubernetes as k8s

from .contract import (
    COPIES_ANNOTATION,
    HOT_CLASS,
    MODEL_WRITER,
    ONE_NODE_ANNOTATION,
    PROTECTED_ANNOTATION,
    SHARED_CLAIM,
    SHARED_CLASS,
    labels,
    type_token,
)


@dataclass(frozen=True, kw_only=True)
class TierArgs:
    """One StorageClass."""

    provisioner: str | None = None
    """The CSI driver; neither `kubernetes.io/nfs` nor any other in-tree name provisions anything. None: the class of this name is there."""
    size: str
    """Size of one claim, a Kubernetes quantity."""
    class_name: str | None = None
    """Name of the StorageClass; by default `local-nvme` for the hot tier, `shared-models` for the shared one."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    mount_options: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class StorageArgs:
    """Inputs of Storage."""

    namespace: pulumi.Input[str]
    hot: TierArgs
    shared: TierArgs
    retain: bool
    """Keep volumes, and refuse to delete the shared claim, when the stack is destroyed."""
    keep_copies: bool = True
    """False: a volume of the hot tier goes with its claim, whatever `retain` says."""
    shared_access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """ReadWriteOnce: one node has every pod that uses the claim."""
    shared_claim: str | None = None
    """A ReadWriteMany claim of the namespace that is there. Then neither it nor a class for it is made."""


class Storage(pulumi.ComponentResource):
    """StorageClasses `local-nvme` and `shared-models`, or others, and the claim that the writer fills and every replica reads.

    For example:

        store = Storage("storage", StorageArgs(namespace="fleet", retain=True,
                                               hot=TierArgs(provisioner="local.csi.openebs.io", size="100Gi"),
                                               shared=TierArgs(provisioner="nfs.csi.k8s.io", size="1Ti",
                                                               parameters={"server": "nfs.example.com", "share": "/models"})))
        pulumi.export("claim", store.shared_claim)
    """

    hot_class: pulumi.Output[str]
    shared_class: pulumi.Output[str]
    """StorageClass of further claims that several nodes mount."""
    shared_claim: pulumi.Output[str]

    def __init__(self, name: str, args: StorageArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("Storage"), name, {}, opts)
        self._retain = args.retain
        # A node-local volume must be made where the pod will run, so that class waits for the scheduler.
        hot_class, shared_class = args.hot.class_name or HOT_CLASS, args.shared.class_name or SHARED_CLASS
        self._storage_class(f"{name}-hot", hot_class, args.hot, "WaitForFirstConsumer", copies=args.keep_copies)
        # Claims name their class by its plain name: through the class's output, replacing a class would replace its claims.
        self.hot_class = pulumi.Output.from_input(hot_class)
        self.shared_claim = (
            self._claim(name, args, shared_class) if args.shared_claim is None else pulumi.Output.from_input(args.shared_claim)
        )
        self.shared_class = pulumi.Output.from_input(shared_class)
        self.register_outputs({"hot_class": self.hot_class, "shared_claim": self.shared_claim})

    def _claim(self, name: str, args: StorageArgs, shared_class: str) -> pulumi.Output[str]:
        shared = self._storage_class(f"{name}-shared", shared_class, args.shared, "Immediate")
        one_node = {ONE_NODE_ANNOTATION: "true"} if args.shared_access_mode == "ReadWriteOnce" else {}
        claim = k8s.core.v1.PersistentVolumeClaim(
            f"{name}-claim",
            metadata=k8s.meta.v1.ObjectMetaArgs(
                name=SHARED_CLAIM,
                namespace=args.namespace,
                labels=labels(MODEL_WRITER),
                annotations={PROTECTED_ANNOTATION: str(args.retain).lower()} | one_node,
            ),
            spec=k8s.core.v1.PersistentVolumeClaimSpecArgs(
                access_modes=[args.shared_access_mode],
                storage_class_name=shared_class,
                resources=k8s.core.v1.VolumeResourceRequirementsArgs(requests={"storage": args.shared.size}),
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=shared, protect=args.retain, retain_on_delete=args.retain),
        )
        return claim.metadata.name

    def _storage_class(self, name: str, class_name: str, tier: TierArgs, binding: str, *, copies: bool = True) -> list[pulumi.Resource]:
        """The class; nothing where it is there already."""
        if tier.provisioner is None:
            return []
        made = k8s.storage.v1.StorageClass(
            name,
            metadata=k8s.meta.v1.ObjectMetaArgs(
                name=class_name, labels=labels("storage"), annotations=None if copies else {COPIES_ANNOTATION: "disposable"}
            ),
            provisioner=tier.provisioner,
            parameters=dict(tier.parameters) or None,
            mount_options=list(tier.mount_options) or None,
            reclaim_policy="Retain" if self._retain and copies else "Delete",
            volume_binding_mode=binding,
            allow_volume_expansion=True,
            # The class of a name cannot change in place; the old one goes first, volumes do not depend on it.
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True, replace_on_changes=["reclaimPolicy", "volumeBindingMode"]),
        )
        return [made]
