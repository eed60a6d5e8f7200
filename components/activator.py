"""Scaling the Ollama fleet, and model servers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pulumi
import pulumi_kubernetes as k8s

from . import containers, objects, pods
from .contract import ACTIVATOR, API_METRICS_PORT, API_SERVER, OLLAMA, PORTS, SCALES_VARIABLE, type_token
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
rbac = k8s.rbac.v1
_DEMAND = f"{API_SERVER}-demand"
_TOKEN_PATH = "/var/run/secrets/activator"  # noqa: S105 (a directory)


@dataclass(frozen=True, kw_only=True)
class ScaleArgs:
    """How many pods one StatefulSet may have."""

    replicas: int
    """At most."""
    min_replicas: int = 0
    """At least."""
    idle_s: int
    """Seconds after which one goes, in which fewer would have done and it had no request."""


@dataclass(frozen=True, kw_only=True)
class ActivatorArgs:
    """Inputs of Activator."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    """The API server's: the activator is a module of it."""
    replicas: int = 0
    """Ollama servers at most. 0: it leaves the fleet alone."""
    min_replicas: int = 0
    """Ollama servers at least."""
    idle_s: int = 900
    """Seconds after which an Ollama server goes, in which fewer would have done and it had no request."""
    model_servers: Mapping[str, ScaleArgs] = field(default_factory=dict)
    """Components of the model servers that it scales (`ModelServerArgs.component`), and how."""
    resources: containers.ResourceArgs
    priority_class: pulumi.Input[str] | None = None
    workload: WorkloadArgs = ORDINARY


class Activator(pulumi.ComponentResource):
    """A Deployment that may read and set the scale of the StatefulSets that it is told, and nothing else.

    It asks every API server for its demand through a headless Service, and tells them which server is to go. Network opens the way to both,
    where it is told the addresses of the cluster's API server.

        Activator("activator", ActivatorArgs(namespace="fleet", image="registry.example.com/api-server@sha256:" + 64 * "0", replicas=3,
                                             idle_s=900, resources=ResourceArgs(cpu="20m", memory="64Mi")))
    """

    def __init__(self, name: str, args: ActivatorArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("Activator"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        runs = self._account(name, args, child)
        # It asks each of them for its demand: a server that drains may still hold requests.
        objects.every_pod(f"{name}-demand", _DEMAND, API_SERVER, args.namespace, API_METRICS_PORT, child)
        pod, once = _pod(args), k8s.apps.v1.DeploymentStrategyArgs(type="Recreate")
        pods.deployment(f"{name}-server", ACTIVATOR, args.namespace, pod, runs, strategy=once)
        self.register_outputs({})

    @staticmethod
    def _account(name: str, args: ActivatorArgs, child: pulumi.ResourceOptions) -> pulumi.ResourceOptions:
        """The account that may scale them. Returns the options of what runs as it."""
        meta = objects.metadata(ACTIVATOR, args.namespace)
        runs = objects.account(f"{name}-account", ACTIVATOR, args.namespace, child, args.workload)
        scale = rbac.PolicyRuleArgs(
            api_groups=["apps"], resources=["statefulsets/scale"], resource_names=[*_scales(args)], verbs=["get", "patch"]
        )
        role = rbac.Role(f"{name}-role", metadata=meta, rules=[scale], opts=child)
        rbac.RoleBinding(
            f"{name}-binding",
            metadata=meta,
            role_ref=rbac.RoleRefArgs(api_group="rbac.authorization.k8s.io", kind="Role", name=role.metadata.name),
            subjects=[rbac.SubjectArgs(kind="ServiceAccount", name=ACTIVATOR, namespace=args.namespace)],
            opts=child,
        )
        return runs


def _scales(args: ActivatorArgs) -> dict[str, ScaleArgs]:
    """By StatefulSet."""
    fleet = {OLLAMA: ScaleArgs(replicas=args.replicas, min_replicas=args.min_replicas, idle_s=args.idle_s)} if args.replicas else {}
    return fleet | dict(args.model_servers)


def _pod(args: ActivatorArgs) -> core.PodSpecArgs:
    tmp, tmp_mount = containers.scratch()
    token = core.ServiceAccountTokenProjectionArgs(path="token", expiration_seconds=3600)
    authority = core.ConfigMapProjectionArgs(name="kube-root-ca.crt", items=[core.KeyToPathArgs(key="ca.crt", path="ca.crt")])
    identity = core.VolumeArgs(
        name="identity",
        projected=core.ProjectedVolumeSourceArgs(
            default_mode=0o440,
            sources=[core.VolumeProjectionArgs(service_account_token=token), core.VolumeProjectionArgs(config_map=authority)],
        ),
    )
    sets = pulumi.Output.concat("https://kubernetes.default.svc/apis/apps/v1/namespaces/", args.namespace, "/statefulsets")
    scales = {name: {"least": each.min_replicas, "most": each.replicas, "idle_s": each.idle_s} for name, each in _scales(args).items()}
    container = core.ContainerArgs(
        name=ACTIVATOR,
        image=args.image,
        command=["python", "-m", "api_server.activator"],
        env=containers.env(
            {
                **containers.HOME,
                "ACTIVATOR_GATEWAYS": f"{_DEMAND}:{API_METRICS_PORT}",
                "ACTIVATOR_STATEFUL_SETS_URL": sets,
                SCALES_VARIABLE: json.dumps(scales),
                "ACTIVATOR_FLEET": OLLAMA,
                "ACTIVATOR_TOKEN_FILE": f"{_TOKEN_PATH}/token",
                "ACTIVATOR_CA_FILE": f"{_TOKEN_PATH}/ca.crt",
                "ACTIVATOR_PORT": str(PORTS[ACTIVATOR]),
            }
        ),
        ports=[core.ContainerPortArgs(name="health", container_port=PORTS[ACTIVATOR])],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=[tmp_mount, core.VolumeMountArgs(name="identity", mount_path=_TOKEN_PATH, read_only=True)],
        readiness_probe=containers.http_probe("/health", PORTS[ACTIVATOR]),
        liveness_probe=containers.liveness(PORTS[ACTIVATOR]),
    )
    return pods.spec(ACTIVATOR, [container], [tmp, identity], pods.Placement(workload=args.workload, priority_class=args.priority_class))
