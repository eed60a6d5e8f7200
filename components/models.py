"""The shared model store: its one writer, and what keeps a replica's own store equal to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects, pods
from .contract import MODEL_WRITER, type_token
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
LOCAL_VOLUME = "models"
SHARED_PATH = "/shared"
STORE_PATH = "/models"
_CREDENTIALS_PATH, _CREDENTIALS_FILE = "/etc/model-sync/credentials", "credentials.json"
_AUTHORITIES_PATH, _AUTHORITIES_FILE = "/etc/model-sync/authorities", "ca.crt"
_File = tuple[core.VolumeArgs, core.VolumeMountArgs]
HYDRATION_S = 3600
"""How long the first copy of a replica's models may take: 100 GB at 28 MB/s."""

FOLLOWER_RESOURCES = containers.ResourceArgs(cpu="50m", memory="128Mi")


@dataclass(frozen=True, kw_only=True)
class ModelStoreArgs:
    """Inputs of ModelStore."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    """Carries `model_sync` and a model store at /seed."""
    sync_image: pulumi.Input[str]
    """Carries `model_sync` alone."""
    claim: pulumi.Input[str]
    """ReadWriteMany claim that is written here and read everywhere else."""
    capacity_bytes: int
    """Size of the claim: network file systems do not hold a claim to it."""
    fleet: int = 0
    """Replicas of the fleet, where a model is held by some of them only."""
    models: Sequence[Mapping[str, Any]]
    """Each with the fields of model_sync.publish.Declared."""
    rate_limit_bytes: int = 0
    """Bytes a second from all sources together; 0 is unlimited."""
    verify: bool = False
    """Hash what is in the store already, too."""
    credentials: pulumi.Input[str] | None = None
    """JSON map of a source's host, or host:port, to a token or `user:password`: a secret that the writer alone mounts."""
    ca_bundle: str = ""
    """Certificates (PEM) of authorities that the writer trusts beside those of its image."""
    proxy: str = ""
    """http://HOST:PORT of the forward proxy that leads to the sources; its credential is the entry HOST:PORT of `credentials`."""
    no_proxy: Sequence[str] = ()
    """Names that are reached without it, each with all names below it."""
    priority_class: pulumi.Input[str] | None = None
    workload: WorkloadArgs = ORDINARY


@dataclass(frozen=True, kw_only=True)
class LocalCopyArgs:
    """A claim of its own for each replica of a server, and what copies the model there."""

    image: pulumi.Input[str]
    """Carries `model_sync`."""
    storage_class: pulumi.Input[str]
    size: str
    capacity_bytes: int
    """The same in bytes."""
    retain: bool
    """Keep the volumes when the server is deleted."""
    keep: bool = True
    """Keep the volumes of replicas that were scaled away."""


class ModelStore(pulumi.ComponentResource):
    """A Job that delivers the declared models into the shared claim: verified blobs first, then manifests, last the catalog.

    Another list of models makes a new Job; the store keeps its blobs, and only new blobs are fetched. When a source refuses or does not
    answer, the Job fails, and the message of its pod has the reason. Models that are served stay. The next `pulumi up` continues the work.

        model = {"name": "qwen3-coder:30b", "source": "https://models.example.com/qwen3-coder-30b.gguf", "digest": "sha256:" + 64 * "0",
                 "size": 19 * 2**30, "context_length": 65536, "quantization": "Q4_K_M", "replicas": 0, "keep_alive": "-1"}
        store = ModelStore("models", ModelStoreArgs(namespace="fleet", image="registry.example.com/models@sha256:" + 64 * "0",
                                                    sync_image="registry.example.com/model-sync@sha256:" + 64 * "0",
                                                    claim="shared-models", capacity_bytes=2**40, models=[model]))
        readers = pulumi.ResourceOptions(depends_on=[store.writer])
    """

    writer: pulumi.Resource
    """The Job. Readers depend on it alone: the component is not complete before they are."""

    def __init__(self, name: str, args: ModelStoreArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("ModelStore"), name, {}, opts)
        self._name, self._args = name, args
        command = ["publish", "/seed", SHARED_PATH, f"--capacity={args.capacity_bytes}"]
        command += [f"--rate-limit={args.rate_limit_bytes}"] if args.rate_limit_bytes else []
        command += ["--verify"] if args.verify else []
        command += [f"--proxy={args.proxy}"] if args.proxy else []
        command += [f"--no-proxy={name}" for name in args.no_proxy]
        child = pulumi.ResourceOptions(parent=self)
        files: list[_File] = []
        if args.credentials is not None:
            command.append(f"--credentials={_CREDENTIALS_PATH}/{_CREDENTIALS_FILE}")
            files.append(self._credentials(args.credentials, child))
        if args.ca_bundle:
            command.append(f"--ca-bundle={_AUTHORITIES_PATH}/{_AUTHORITIES_FILE}")
            files.append(self._authorities(child))
        self._runs = objects.account(f"{name}-account", MODEL_WRITER, args.namespace, child, args.workload)
        self.writer = self._job("writer", args.image, command, self._runs, files)
        self.register_outputs({})

    def clean_after(self, readers: Sequence[pulumi.Resource]) -> None:
        """Once every reader uses the models that are published now, a second Job removes all other ones."""
        after = pulumi.ResourceOptions.merge(self._runs, pulumi.ResourceOptions(depends_on=[self.writer, *readers]))
        self._job("cleaner", self._args.sync_image, ["clean", SHARED_PATH], after)

    def _credentials(self, credentials: pulumi.Input[str], child: pulumi.ResourceOptions) -> _File:
        secret = core.Secret(
            f"{self._name}-credentials",
            metadata=objects.metadata(MODEL_WRITER, self._args.namespace, named=False),
            string_data={_CREDENTIALS_FILE: pulumi.Output.secret(credentials)},
            immutable=True,
            opts=child,
        )
        return containers.secret_file("credentials", secret.metadata.name, _CREDENTIALS_PATH)

    def _authorities(self, child: pulumi.ResourceOptions) -> _File:
        bundle = core.ConfigMap(
            f"{self._name}-authorities",
            metadata=objects.metadata(MODEL_WRITER, self._args.namespace, named=False),
            data={_AUTHORITIES_FILE: self._args.ca_bundle},
            immutable=True,
            opts=child,
        )
        return containers.config_file("authorities", bundle.metadata.name, _AUTHORITIES_PATH)

    def _job(
        self, role: str, image: pulumi.Input[str], command: list[str], opts: pulumi.ResourceOptions, files: Sequence[_File] = ()
    ) -> k8s.batch.v1.Job:
        args = self._args
        tmp, tmp_mount = containers.scratch()
        shared = containers.claim("shared", args.claim)
        container = core.ContainerArgs(
            name="model-sync",
            image=image,
            args=command,
            # The cleaner removes what these do not name. So other models or another store make another Job of it, too.
            env=containers.env(
                {
                    "MODEL_SYNC_MODELS": json.dumps({"fleet": args.fleet, "models": [dict(model) for model in args.models]}),
                    "MODEL_SYNC_SEED": args.image,
                }
            ),
            resources=containers.resources(containers.ResourceArgs(cpu="50m", memory="128Mi")),
            security_context=containers.security(),
            termination_message_policy="FallbackToLogsOnError",
            volume_mounts=[tmp_mount, core.VolumeMountArgs(name="shared", mount_path=SHARED_PATH), *(mount for _, mount in files)],
        )
        # A pod that failed stays, so that its message can be read. Its blobs are in the claim, and the next pod continues there.
        volumes = [tmp, shared, *(volume for volume, _ in files)]
        placement = pods.Placement(workload=args.workload, priority_class=args.priority_class)
        pod = pods.spec(MODEL_WRITER, [container], volumes, placement, restart_policy="Never")
        return k8s.batch.v1.Job(
            f"{self._name}-{role}",
            metadata=objects.metadata(MODEL_WRITER, args.namespace, named=False),
            spec=k8s.batch.v1.JobSpecArgs(
                # The writer itself tries again, so its first failure is final.
                backoff_limit=0,
                pod_failure_policy=pods.disruptions_are_no_failures(),
                template=pods.template(MODEL_WRITER, pod),
            ),
            # A failed Job is not reused: the next `pulumi up` makes another.
            opts=pulumi.ResourceOptions.merge(
                opts, pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create="6h", update="6h"))
            ),
        )


def follower(image: pulumi.Input[str], capacity_bytes: int, mounts: list[core.VolumeMountArgs]) -> core.ContainerArgs:
    """A sidecar that keeps the replica's store equal to the shared one. The containers after it start when its first pass is over.

    Nothing in it depends on the list of models, so that another list restarts no pod.
    """
    marker = "/tmp/first-pass"  # noqa: S108 (a directory of this pod)
    return core.ContainerArgs(
        name="model-sync",
        image=image,
        args=["follow", SHARED_PATH, STORE_PATH, "--ordinal=$(ORDINAL)", f"--capacity={capacity_bytes}", f"--marker={marker}"],
        env=[containers.field("ORDINAL", "metadata.labels['apps.kubernetes.io/pod-index']")],
        restart_policy="Always",
        resources=containers.resources(FOLLOWER_RESOURCES),
        security_context=containers.security(),
        startup_probe=core.ProbeArgs(
            # The marker holds the start time of process 1. A marker from before a restart is still there, but holds another time.
            exec_=core.ExecActionArgs(command=["sh", "-c", f'test "$(cut -d" " -f22 /proc/1/stat)" = "$(cat {marker})"']),
            period_seconds=2,
            failure_threshold=HYDRATION_S // 2,
        ),
        volume_mounts=mounts,
    )


def copier(local: LocalCopyArgs, model: str, mounts: list[core.VolumeMountArgs]) -> core.ContainerArgs:
    """Copies one model to the volume of a server that reads it at its start alone, and ends. What is there already is hashed again."""
    return core.ContainerArgs(
        name="model-sync",
        image=local.image,
        args=["copy", SHARED_PATH, STORE_PATH, model, f"--capacity={local.capacity_bytes}"],
        resources=containers.resources(FOLLOWER_RESOURCES),
        security_context=containers.security(),
        termination_message_policy="FallbackToLogsOnError",
        volume_mounts=mounts,
    )


def kept_claims(*, deleted: bool, scaled: bool) -> k8s.apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicyArgs:
    """Whether the claims of a StatefulSet's replicas stay when it is deleted, and when it is scaled in."""
    return k8s.apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicyArgs(
        when_deleted="Retain" if deleted else "Delete", when_scaled="Retain" if scaled else "Delete"
    )


def local_claim(storage_class: pulumi.Input[str], size: str) -> core.PersistentVolumeClaimArgs:
    """A claim for each replica's own copy of models, as a template of a StatefulSet."""
    return core.PersistentVolumeClaimArgs(
        metadata=k8s.meta.v1.ObjectMetaArgs(name=LOCAL_VOLUME),
        spec=core.PersistentVolumeClaimSpecArgs(
            access_modes=["ReadWriteOnce"],
            storage_class_name=storage_class,
            resources=core.VolumeResourceRequirementsArgs(requests={"storage": size}),
        ),
    )
