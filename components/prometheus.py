"""A Prometheus of the stack's own: it reads the metrics of every pod, keeps them on a volume, and judges the alert rules."""

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
import yaml

from . import alerts, containers, objects, pods
from .contract import PART_OF, PORTS, PROMETHEUS, PROTECTED_ANNOTATION, SCRAPED, type_token
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
rbac = k8s.rbac.v1
SCRAPE_S = 15
"""Seconds between two looks at each pod."""
_CONFIG, _DATA = "/etc/prometheus", "/prometheus"
_IDENTITY = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Prometheus looks for its token, and by that for the cluster's API. It takes the address of that from its environment, so it looks
no name up."""


@dataclass(frozen=True, kw_only=True)
class PrometheusArgs:
    """Inputs of Prometheus."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    storage_class: pulumi.Input[str]
    """Of its claim."""
    size: str
    """Of its claim, a Kubernetes quantity."""
    retention_bytes: int
    """What samples may take of the claim; the oldest go first."""
    retention_days: int
    """How long samples are kept, where there is room."""
    retain: bool
    """Refuse to delete the claim, and leave it when the stack is destroyed."""
    resources: containers.ResourceArgs
    workload: WorkloadArgs = ORDINARY


class Prometheus(pulumi.ComponentResource):
    """One server, which may list the pods of its namespace and nothing else. Network opens its way to them and to the cluster's API.

    A restart loses no sample: the samples are on a claim. There is no second server, because both would read the same.

        Prometheus("prometheus", PrometheusArgs(namespace="fleet", image="registry.example.com/prometheus@sha256:" + 64 * "0",
                                                storage_class="local-nvme", size="8Gi", retention_bytes=6 * 2**30, retention_days=40,
                                                retain=True, resources=ResourceArgs(cpu="100m", memory="512Mi")))
    """

    def __init__(self, name: str, args: PrometheusArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("Prometheus"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        # Named by Pulumi: another configuration is a new object, and the server starts again with it.
        config = core.ConfigMap(
            f"{name}-config",
            metadata=objects.metadata(PROMETHEUS, args.namespace, named=False),
            data={
                "prometheus.yaml": pulumi.Output.from_input(args.namespace).apply(lambda space: _text(configuration(space))),
                "rules.yaml": _text({"groups": alerts.rule_groups()}),
            },
            immutable=True,
            opts=child,
        )
        claim = self._claim(name, args)
        runs = _account(name, args, child)
        pod, once = _pod(args, config.metadata.name, claim.metadata.name), k8s.apps.v1.DeploymentStrategyArgs(type="Recreate")
        pods.deployment(f"{name}-server", PROMETHEUS, args.namespace, pod, runs, strategy=once)
        objects.service(f"{name}-service", PROMETHEUS, args.namespace, {"http": PORTS[PROMETHEUS]}, child)
        self.register_outputs({})

    def _claim(self, name: str, args: PrometheusArgs) -> core.PersistentVolumeClaim:
        # It is bound when the pod is there, which Pulumi would wait for before it makes the pod.
        kept = {PROTECTED_ANNOTATION: str(args.retain).lower(), **objects.SKIP_AWAIT}
        return core.PersistentVolumeClaim(
            f"{name}-claim",
            metadata=objects.metadata(PROMETHEUS, args.namespace, annotations=kept),
            spec=core.PersistentVolumeClaimSpecArgs(
                access_modes=["ReadWriteOnce"],
                storage_class_name=args.storage_class,
                resources=core.VolumeResourceRequirementsArgs(requests={"storage": args.size}),
            ),
            opts=pulumi.ResourceOptions(parent=self, protect=args.retain, retain_on_delete=args.retain),
        )


def configuration(namespace: str) -> dict[str, Any]:
    """The server's configuration file: one job, which finds the pods of docs/metrics.md and keeps their names.

    Its `job` is the component, `instance` the address, and `namespace` and `pod` are what an operator's PodMonitor calls them, too.
    """
    component, port = "__meta_kubernetes_pod_label_app_kubernetes_io_name", "__meta_kubernetes_pod_container_port_number"
    wanted = "|".join(f"{name};{number}" for name, number in SCRAPED.items())
    pods_of_ours = {
        "role": "pod",
        "namespaces": {"names": [namespace]},
        "selectors": [{"role": "pod", "label": f"app.kubernetes.io/part-of={PART_OF}"}],
    }
    return {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": PART_OF,
                "kubernetes_sd_configs": [pods_of_ours],
                "relabel_configs": [
                    {"source_labels": [component, port], "regex": wanted, "action": "keep"},
                    # Of these the addresses may be other pods' by now.
                    {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Failed|Succeeded", "action": "drop"},
                    {"source_labels": [component], "target_label": "job"},
                    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
                    {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                ],
            }
        ],
    }


def _text(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=200)


def _account(name: str, args: PrometheusArgs, child: pulumi.ResourceOptions) -> pulumi.ResourceOptions:
    """The account that may list pods. Returns the options of what runs as it."""
    meta = objects.metadata(PROMETHEUS, args.namespace)
    runs = objects.account(f"{name}-account", PROMETHEUS, args.namespace, child, args.workload)
    looks = rbac.PolicyRuleArgs(api_groups=[""], resources=["pods"], verbs=["list", "watch"])
    role = rbac.Role(f"{name}-role", metadata=meta, rules=[looks], opts=child)
    rbac.RoleBinding(
        f"{name}-binding",
        metadata=meta,
        role_ref=rbac.RoleRefArgs(api_group="rbac.authorization.k8s.io", kind="Role", name=role.metadata.name),
        subjects=[rbac.SubjectArgs(kind="ServiceAccount", name=PROMETHEUS, namespace=args.namespace)],
        opts=child,
    )
    return runs


def flags(args: PrometheusArgs) -> list[str]:
    """The server's command line. Source: `prometheus --help` of 2.42; 3.x has the same."""
    return [
        f"--config.file={_CONFIG}/prometheus.yaml",
        # A directory of its own: a file system has others, such as lost+found, at its root.
        f"--storage.tsdb.path={_DATA}/tsdb",
        f"--storage.tsdb.retention.time={args.retention_days}d",
        f"--storage.tsdb.retention.size={args.retention_bytes}B",
        # The kubelet probes the pod's address.
        f"--web.listen-address=:{PORTS[PROMETHEUS]}",
    ]


def _pod(args: PrometheusArgs, config: pulumi.Input[str], claim: pulumi.Input[str]) -> core.PodSpecArgs:
    port = PORTS[PROMETHEUS]
    identity, identity_mount = containers.token(_IDENTITY)
    files, files_mount = containers.config_file("config", config, _CONFIG)
    data = containers.claim("data", claim)
    container = core.ContainerArgs(
        name=PROMETHEUS,
        image=args.image,
        args=flags(args),
        ports=[core.ContainerPortArgs(name="http", container_port=port)],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=[files_mount, identity_mount, core.VolumeMountArgs(name="data", mount_path=_DATA)],
        # After a crash it first reads its log again.
        startup_probe=containers.http_probe("/-/ready", port, failures=180),
        readiness_probe=containers.http_probe("/-/ready", port),
        liveness_probe=containers.http_probe("/-/healthy", port, period_s=10, failures=6, timeout_s=5),
    )
    return pods.spec(PROMETHEUS, [container], [identity, files, data], pods.Placement(workload=args.workload))
