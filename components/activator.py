"""Scaling the Ollama fleet from and to zero."""

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from . import pods
from .contract import ACTIVATOR, API_METRICS_PORT, API_SERVER, OLLAMA, PORTS, labels, type_token

core = k8s.core.v1
rbac = k8s.rbac.v1
_DEMAND = f"{API_SERVER}-demand"
_TOKEN_PATH = "/var/run/secrets/activator"  # noqa: S105 (a directory)


@dataclass(frozen=True, kw_only=True)
class ActivatorArgs:
    """Inputs of Activator."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    """The API server's: the activator is a module of it."""
    replicas: int
    """Ollama servers of a fleet that is up."""
    idle_s: int
    """Seconds without a request after which the fleet goes to zero."""
    resources: pods.ResourceArgs
    priority_class: pulumi.Input[str] | None = None


class Activator(pulumi.ComponentResource):
    """A Deployment that may read and set the scale of one StatefulSet, and nothing else.

    It asks every API server for its demand through a headless Service. Network opens the way to both, where it is told the addresses of
    the cluster's API server.

        Activator("activator", ActivatorArgs(namespace="fleet", image="registry.example.com/api-server@sha256:" + 64 * "0", replicas=3,
                                             idle_s=900, resources=ResourceArgs(cpu="20m", memory="64Mi")))
    """

    def __init__(self, name: str, args: ActivatorArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("Activator"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        meta = pods.metadata(ACTIVATOR, args.namespace)
        account = core.ServiceAccount(f"{name}-account", metadata=meta, automount_service_account_token=False, opts=child)
        scale = rbac.PolicyRuleArgs(api_groups=["apps"], resources=["statefulsets/scale"], resource_names=[OLLAMA], verbs=["get", "patch"])
        role = rbac.Role(
            f"{name}-role",
            metadata=meta,
            rules=[scale],
            opts=child,
        )
        rbac.RoleBinding(
            f"{name}-binding",
            metadata=meta,
            role_ref=rbac.RoleRefArgs(api_group="rbac.authorization.k8s.io", kind="Role", name=role.metadata.name),
            subjects=[rbac.SubjectArgs(kind="ServiceAccount", name=account.metadata.name, namespace=args.namespace)],
            opts=child,
        )
        core.Service(
            f"{name}-demand",
            metadata=k8s.meta.v1.ObjectMetaArgs(
                name=_DEMAND, namespace=args.namespace, labels=labels(API_SERVER), annotations=pods.SKIP_AWAIT
            ),
            spec=core.ServiceSpecArgs(
                cluster_ip="None",
                selector=pods.selector(API_SERVER),
                # One that drains may still hold requests.
                publish_not_ready_addresses=True,
                ports=[core.ServicePortArgs(name="metrics", port=API_METRICS_PORT, target_port=API_METRICS_PORT)],
            ),
            opts=child,
        )
        k8s.apps.v1.Deployment(
            f"{name}-server",
            metadata=meta,
            spec=k8s.apps.v1.DeploymentSpecArgs(
                replicas=1,
                strategy=k8s.apps.v1.DeploymentStrategyArgs(type="Recreate"),
                selector=k8s.meta.v1.LabelSelectorArgs(match_labels=pods.selector(ACTIVATOR)),
                template=pods.template(ACTIVATOR, _pod(args, account.metadata.name)),
            ),
            opts=child,
        )
        self.register_outputs({})


def _pod(args: ActivatorArgs, account: pulumi.Input[str]) -> core.PodSpecArgs:
    tmp, tmp_mount = pods.scratch()
    token = core.ServiceAccountTokenProjectionArgs(path="token", expiration_seconds=3600)
    authority = core.ConfigMapProjectionArgs(name="kube-root-ca.crt", items=[core.KeyToPathArgs(key="ca.crt", path="ca.crt")])
    identity = core.VolumeArgs(
        name="identity",
        projected=core.ProjectedVolumeSourceArgs(
            default_mode=0o440,
            sources=[core.VolumeProjectionArgs(service_account_token=token), core.VolumeProjectionArgs(config_map=authority)],
        ),
    )
    scale = pulumi.Output.concat("https://kubernetes.default.svc/apis/apps/v1/namespaces/", args.namespace, f"/statefulsets/{OLLAMA}/scale")
    container = core.ContainerArgs(
        name=ACTIVATOR,
        image=args.image,
        command=["python", "-m", "api_server.activator"],
        env=pods.env(
            {
                "HOME": "/tmp",  # noqa: S108
                "ACTIVATOR_GATEWAYS": f"{_DEMAND}:{API_METRICS_PORT}",
                "ACTIVATOR_SCALE_URL": scale,
                "ACTIVATOR_REPLICAS": str(args.replicas),
                "ACTIVATOR_IDLE_S": str(args.idle_s),
                "ACTIVATOR_TOKEN_FILE": f"{_TOKEN_PATH}/token",
                "ACTIVATOR_CA_FILE": f"{_TOKEN_PATH}/ca.crt",
                "ACTIVATOR_PORT": str(PORTS[ACTIVATOR]),
            }
        ),
        ports=[core.ContainerPortArgs(name="health", container_port=PORTS[ACTIVATOR])],
        resources=pods.resources(args.resources),
        security_context=pods.container_security(),
        volume_mounts=[tmp_mount, core.VolumeMountArgs(name="identity", mount_path=_TOKEN_PATH, read_only=True)],
        readiness_probe=pods.http_probe("/health", PORTS[ACTIVATOR]),
        liveness_probe=pods.http_probe("/health", PORTS[ACTIVATOR], period_s=10, failures=6, timeout_s=5),
    )
    pod = pods.spec(ACTIVATOR, [container], [tmp, identity], priority_class=args.priority_class)
    pod.service_account_name = account
    return pod
