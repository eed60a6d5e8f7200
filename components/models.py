"""The one writer of the shared model store."""

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from components import pods
from components.contract import MODEL_WRITER, type_token

core = k8s.core.v1
SHARED_PATH = "/shared"
STORE_PATH = "/models"


@dataclass(frozen=True, kw_only=True)
class ModelStoreArgs:
    """Inputs of ModelStore."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    """Carries `model_sync` and a model store at /seed."""
    claim: pulumi.Input[str]
    """ReadWriteMany claim that is written here and read everywhere else."""
    priority_class: pulumi.Input[str] | None = None


class ModelStore(pulumi.ComponentResource):
    """A Job that copies the image's models into the shared claim: blobs verified by digest first, manifests last.

    A new image means a new Job; the store keeps what it has, and only new blobs are copied.
    """

    ready: pulumi.Output[str]
    """Name of the Job, known when it has completed."""

    def __init__(self, name: str, args: ModelStoreArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("ModelStore"), name, {}, opts)
        tmp, tmp_mount = pods.scratch()
        shared = core.VolumeArgs(
            name="shared", persistent_volume_claim=core.PersistentVolumeClaimVolumeSourceArgs(claim_name=args.claim)
        )  # fmt: skip
        pod = pods.spec(
            MODEL_WRITER,
            [sync_container(args.image, "/seed", SHARED_PATH, [tmp_mount, core.VolumeMountArgs(name="shared", mount_path=SHARED_PATH)])],
            [tmp, shared],
            restart_policy="OnFailure",
            priority_class=args.priority_class,
        )
        job = k8s.batch.v1.Job(
            f"{name}-writer",
            metadata=pods.metadata(MODEL_WRITER, args.namespace, named=False),
            spec=k8s.batch.v1.JobSpecArgs(backoff_limit=3, template=pods.template(MODEL_WRITER, pod)),
            # A failed Job is not reused: the next `pulumi up` makes another.
            opts=pulumi.ResourceOptions(parent=self, custom_timeouts=pulumi.CustomTimeouts(create="30m", update="30m")),
        )
        self.ready = job.metadata.name
        self.register_outputs({"ready": self.ready})


def sync_container(image: pulumi.Input[str], source: str, target: str, mounts: list[core.VolumeMountArgs]) -> core.ContainerArgs:
    """Runs `model_sync SOURCE TARGET`, then ends."""
    return core.ContainerArgs(
        name="model-sync",
        image=image,
        args=[source, target],
        resources=pods.resources(pods.ResourceArgs(cpu="50m", memory="128Mi")),
        security_context=pods.container_security(),
        volume_mounts=mounts,
    )
