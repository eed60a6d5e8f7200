"""What the containers of all components share: resources, hardening, probes, variables and mounts."""

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

core = k8s.core.v1
GPU_CLAIM = "gpu"
"""Name of the claim in a pod that has its GPUs by a claim."""
HOME = {"HOME": "/tmp"}  # noqa: S108 (a directory of the pod)
"""The one directory that can be written: the root file system cannot."""
SCRATCH = "64Mi"
"""Size of a scratch directory: most services write next to nothing."""


@dataclass(frozen=True, kw_only=True)
class ResourceArgs:
    """What one container asks for."""

    cpu: str
    """CPU request, a Kubernetes quantity. There is no CPU limit."""
    memory: str
    """Memory request and limit, a Kubernetes quantity."""
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    claims_gpus: bool = False
    """The GPUs come by the pod's claim `gpu` (DRA), not as an extended resource."""


def resources(args: ResourceArgs, *, disk: str | None = None) -> core.ResourceRequirementsArgs:
    """`disk`: request and limit of the node's own, where the namespace's default will not do."""
    claimed = args.claims_gpus and args.gpus > 0
    more = {args.gpu_resource: str(args.gpus)} if args.gpus and not claimed else {}
    more |= {"ephemeral-storage": disk} if disk else {}
    return core.ResourceRequirementsArgs(
        requests={"cpu": args.cpu, "memory": args.memory, **more},
        limits={"memory": args.memory, **more},
        claims=[core.ResourceClaimArgs(name=GPU_CLAIM)] if claimed else None,
    )


def security() -> core.SecurityContextArgs:
    """The Pod Security Standard `restricted`, and a root file system that cannot be written."""
    return core.SecurityContextArgs(
        allow_privilege_escalation=False,
        read_only_root_filesystem=True,
        run_as_non_root=True,
        capabilities=core.CapabilitiesArgs(drop=["ALL"]),
    )


def http_probe(
    path: str, port: int, *, period_s: int = 5, failures: int = 3, timeout_s: int = 3, grace_s: int | None = None, tls: bool = False
) -> core.ProbeArgs:
    """`grace_s`: what a container that failed has until it is killed, instead of the pod's own time for that. `tls`: a kubelet looks at no
    certificate."""
    return core.ProbeArgs(
        http_get=core.HTTPGetActionArgs(path=path, port=port, scheme="HTTPS" if tls else None),
        period_seconds=period_s,
        failure_threshold=failures,
        timeout_seconds=timeout_s,
        termination_grace_period_seconds=grace_s,
    )


def liveness(port: int, *, tls: bool = False) -> core.ProbeArgs:
    """A minute without an answer to /health restarts the container."""
    return http_probe("/health", port, period_s=10, failures=6, timeout_s=5, tls=tls)


def gpu_probe() -> core.ProbeArgs:
    """For a container with GPUs whose program touches them for requests alone: a GPU that is lost makes it unready within a minute.

    NVIDIA's runtime puts `nvidia-smi` beside the GPUs. By its exit status the driver is not there, a GPU has fallen off the bus, or the
    driver failed (nvidia-smi(1), RETURN VALUE); with any other one, or without the program, nothing is said against the GPUs.
    """
    look = 'said=$(nvidia-smi -L 2>&1); case $? in 9|15|255) echo "$said"; exit 1;; esac'
    return core.ProbeArgs(exec_=core.ExecActionArgs(command=["sh", "-c", look]), period_seconds=15, failure_threshold=2, timeout_seconds=10)


def env(values: Mapping[str, pulumi.Input[str]]) -> list[core.EnvVarArgs]:
    return [core.EnvVarArgs(name=name, value=value) for name, value in values.items()]


def field(name: str, path: str) -> core.EnvVarArgs:
    """A variable with the value of a field of the pod itself."""
    return core.EnvVarArgs(name=name, value_from=core.EnvVarSourceArgs(field_ref=core.ObjectFieldSelectorArgs(field_path=path)))


def scratch(name: str = "tmp", path: str = "/tmp", size: str = SCRATCH) -> tuple[core.VolumeArgs, core.VolumeMountArgs]:  # noqa: S108
    """A small writable directory, since the root file system is not."""
    volume = core.VolumeArgs(name=name, empty_dir=core.EmptyDirVolumeSourceArgs(size_limit=size))
    return volume, core.VolumeMountArgs(name=name, mount_path=path)


def secret_file(name: str, secret: pulumi.Input[str], path: str) -> tuple[core.VolumeArgs, core.VolumeMountArgs]:
    """The keys of a Secret as files below `path`."""
    volume = core.VolumeArgs(name=name, secret=core.SecretVolumeSourceArgs(secret_name=secret, default_mode=0o440))
    return volume, core.VolumeMountArgs(name=name, mount_path=path, read_only=True)


def secret_key(name: str, secret: pulumi.Input[str], key: str, path: str) -> tuple[core.VolumeArgs, core.VolumeMountArgs]:
    """One key of a Secret as the one file below `path`."""
    only = [core.KeyToPathArgs(key=key, path=key)]
    volume = core.VolumeArgs(name=name, secret=core.SecretVolumeSourceArgs(secret_name=secret, items=only, default_mode=0o440))
    return volume, core.VolumeMountArgs(name=name, mount_path=path, read_only=True)


def config_file(name: str, config: pulumi.Input[str], path: str) -> tuple[core.VolumeArgs, core.VolumeMountArgs]:
    """The keys of a ConfigMap as files below `path`."""
    volume = core.VolumeArgs(name=name, config_map=core.ConfigMapVolumeSourceArgs(name=config))
    return volume, core.VolumeMountArgs(name=name, mount_path=path, read_only=True)


def claim(name: str, claim_name: pulumi.Input[str], *, read_only: bool | None = None) -> core.VolumeArgs:
    """The volume of a claim that is there already."""
    source = core.PersistentVolumeClaimVolumeSourceArgs(claim_name=claim_name, read_only=read_only)
    return core.VolumeArgs(name=name, persistent_volume_claim=source)
