"""The disk of a model server at /cache, for the state of conversations: vLLM's blocks as they come, within a size; llama.cpp's slots when
it stops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects
from .contract import COPIES_ANNOTATION

core = k8s.core.v1
_VOLUME, _PATH = "cache", "/cache"
_STATE = "/tmp/keeper.json"  # noqa: S108 (in the pod's own scratch volume)
KEEPER = "cache-keeper"
KEEPER_RESOURCES = containers.ResourceArgs(cpu="50m", memory="160Mi")
"""It knows the name and times of every file: 300 bytes each, and a hundred thousand of them at most on usual disks."""
KEPT_S = 20
"""Seconds that llama.cpp's slots may take to be written when a server has drained."""


@dataclass(frozen=True, kw_only=True)
class CacheTierArgs:
    """What each replica may take, or all of them together."""

    size: str
    size_bytes: int
    """The same in bytes."""
    storage_class: pulumi.Input[str]
    shared_class: pulumi.Input[str] | None = None
    """One tier for all replicas of a server with vLLM, on a claim of this class; None: one for each, of `storage_class`."""
    shared_access_mode: str = "ReadWriteMany"


@dataclass(frozen=True)
class Tier:
    """What a tier adds to a model server's pod."""

    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[core.VolumeMountArgs] = ()
    volumes: Sequence[core.VolumeArgs] = ()
    templates: Sequence[core.PersistentVolumeClaimArgs] = ()
    sidecars: Sequence[core.ContainerArgs] = ()
    grace_s: int = 0


def tier(
    name: str,
    component: str,
    namespace: pulumi.Input[str],
    args: CacheTierArgs | None,
    opts: pulumi.ResourceOptions,
    *,
    image: pulumi.Input[str],
    scratch: core.VolumeMountArgs,
    vllm: bool,
) -> Tier:
    """Of a server with vLLM, or with llama.cpp. `image`: the server's own, which has the keeper. `scratch`: where both see the keeper's
    state."""
    if args is None:
        return Tier()
    mount = core.VolumeMountArgs(name=_VOLUME, mount_path=_PATH)
    if not vllm:
        env = {
            "MODEL_SERVER_KEPT_DIR": f"{_PATH}/kept",
            "MODEL_SERVER_KEPT_MIB": str(args.size_bytes // 2**20),
            "MODEL_SERVER_KEPT_S": str(KEPT_S),
        }
        return Tier(env, [mount], templates=[_template(args)], grace_s=KEPT_S)
    env = {"MODEL_SERVER_TIER_DIR": f"{_PATH}/tier", "MODEL_SERVER_KEEPER_FILE": _STATE}
    keeper = core.ContainerArgs(
        name=KEEPER,
        image=image,
        command=["python3", "-m", "model_server.tier.keeper"],
        env=containers.env(
            {
                "KEEPER_DIRECTORY": f"{_PATH}/tier",
                "KEEPER_LIMIT_MIB": str(args.size_bytes // 2**20),
                "KEEPER_STATE_FILE": _STATE,
            }
        ),
        resources=containers.resources(KEEPER_RESOURCES),
        security_context=containers.security(),
        volume_mounts=[scratch, mount],
        # Before the engine, and for as long as it writes.
        restart_policy="Always",
    )
    if args.shared_class is None:
        return Tier(env, [mount], templates=[_template(args)], sidecars=[keeper])
    # It is bound when a pod is there, which Pulumi would wait for before it makes the pod.
    noted = {COPIES_ANNOTATION: "disposable", **objects.SKIP_AWAIT}
    claim = core.PersistentVolumeClaim(
        f"{name}-cache",
        metadata=objects.metadata(component, namespace, suffix="-cache", annotations=noted),
        spec=core.PersistentVolumeClaimSpecArgs(
            access_modes=[args.shared_access_mode],
            storage_class_name=args.shared_class,
            resources=core.VolumeResourceRequirementsArgs(requests={"storage": args.size}),
        ),
        opts=opts,
    )
    return Tier(env, [mount], [containers.claim(_VOLUME, claim.metadata.name)], sidecars=[keeper])


def _template(args: CacheTierArgs) -> core.PersistentVolumeClaimArgs:
    return core.PersistentVolumeClaimArgs(
        metadata=k8s.meta.v1.ObjectMetaArgs(name=_VOLUME),
        spec=core.PersistentVolumeClaimSpecArgs(
            access_modes=["ReadWriteOnce"],
            storage_class_name=args.storage_class,
            resources=core.VolumeResourceRequirementsArgs(requests={"storage": args.size}),
        ),
    )
