"""A Prometheus of the stack's own: it reads the metrics of every pod, keeps them on a volume, and judges the alert rules."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
import yaml

from . import alerts, containers, objects, pods
from .contract import MODEL_SERVER, PORTS, PROMETHEUS, PROTECTED_ANNOTATION, metric_ports, type_token
from .objectives import ObjectivesArgs
from .workload import ORDINARY, WorkloadArgs

core = k8s.core.v1
SCRAPE_S = 15
"""Seconds between two looks at each pod."""
_CONFIG, _DATA = "/etc/prometheus", "/prometheus"


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
    objectives: ObjectivesArgs = field(default_factory=ObjectivesArgs)
    """What the alert rules hold the fleet to."""
    model_servers: Sequence[str] = (MODEL_SERVER,)
    """Components of the model servers (`ModelServerArgs.component`)."""
    workload: WorkloadArgs = ORDINARY


class Prometheus(pulumi.ComponentResource):
    """One server, which has no rights in the cluster: it finds pods by their addresses in DNS. Network opens its way to them.

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
                "prometheus.yaml": pulumi.Output.from_input(args.namespace).apply(
                    lambda space: _text(configuration(space, args.model_servers))
                ),
                "rules.yaml": _text({"groups": alerts.rule_groups(args.objectives)}),
            },
            immutable=True,
            opts=child,
        )
        claim = self._claim(name, args)
        runs = objects.account(f"{name}-account", PROMETHEUS, args.namespace, child, args.workload)
        for component, port in metric_ports(args.model_servers).items():
            objects.every_pod(f"{name}-{component}", _all(component), component, args.namespace, port, child)
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


def _all(component: str) -> str:
    """The headless Service with the addresses of a component's pods."""
    return f"{component}-metrics"


def configuration(namespace: str, model_servers: Sequence[str] = (MODEL_SERVER,)) -> dict[str, Any]:
    """The server's configuration file. A `job` is a component, an `instance` the address of a pod.

    Debian's Prometheus is built without the discovery of pods by Kubernetes' API, which would also need a right and a way to that API.
    """
    return {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": component,
                # A Service has the cluster's first family, whichever that is.
                "dns_sd_configs": [
                    {"names": [_all(component)], "type": kind, "port": port, "refresh_interval": f"{SCRAPE_S}s"} for kind in ("A", "AAAA")
                ],
                # As others call it, so that one query will do for several fleets.
                "relabel_configs": [{"target_label": "namespace", "replacement": namespace}],
            }
            for component, port in metric_ports(model_servers).items()
        ],
    }


def _text(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=200)


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
    files, files_mount = containers.config_file("config", config, _CONFIG)
    data = containers.claim("data", claim)
    container = core.ContainerArgs(
        name=PROMETHEUS,
        image=args.image,
        args=flags(args),
        ports=[core.ContainerPortArgs(name="http", container_port=port)],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=[files_mount, core.VolumeMountArgs(name="data", mount_path=_DATA)],
        # After a crash it first reads its log again.
        startup_probe=containers.http_probe("/-/ready", port, failures=180),
        readiness_probe=containers.http_probe("/-/ready", port),
        liveness_probe=containers.http_probe("/-/healthy", port, period_s=10, failures=6, timeout_s=5),
    )
    return pods.spec(PROMETHEUS, [container], [files, data], pods.Placement(workload=args.workload))
