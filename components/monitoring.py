"""Metrics of GPUs and the cache; alert rules and dashboards over all metrics. Ollama's come from the agent in each of its pods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pulumi
import pulumi_kubernetes as k8s
import yaml

from . import alerts, containers, dashboards, objects, pods
from .cache import access
from .contract import (
    ARCHITECTURE,
    GPU_NODES,
    METRICS_EXPORTER,
    MODEL_SERVER,
    PORT_NAMES,
    PORTS,
    READER_LABEL,
    SCAN_FILE,
    SCAN_RESULT,
    SCRAPED,
    kind_of,
    labels,
    metric_ports,
    selector,
    type_token,
)
from .objectives import ObjectivesArgs
from .workload import ORDINARY, WorkloadArgs, tolerations

core = k8s.core.v1
_EXPORTER = "modelfleet.dev/exporter"
"""Label with the kind of an exporter: `fleet` or `gpu`."""


@dataclass(frozen=True, kw_only=True)
class MonitoringArgs:
    """Inputs of Monitoring."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    cache_secret: pulumi.Input[str]
    """Secret with the password of the cache server's user."""
    cache_user: str | None = None
    """A user of CacheServer, whose name is the key of its password. None: the default user, whose password is the key `password`."""
    resources: containers.ResourceArgs
    gpu_nodes: bool = False
    """Also run one exporter on every GPU node."""
    gpu_node_labels: Mapping[str, str] = field(default_factory=lambda: dict(GPU_NODES))
    """Labels of nodes with GPUs."""
    runtime_class: pulumi.Input[str] | None = None
    priority_class: pulumi.Input[str] | None = None
    """Of the exporters on GPU nodes: a full node is one to look at."""
    alert_rules: Literal["config-map", "prometheus-rule"] = "config-map"
    """A rule file that your Prometheus mounts or a sidecar finds, or an object of the Prometheus operator."""
    monitors: Literal["pod-monitor", "pod-monitoring"] | None = None
    """Objects by which a Prometheus of yours finds the pods: those of the Prometheus operator, or of Google's managed one."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Further labels of monitors and rules, which your Prometheus selects them by."""
    objectives: ObjectivesArgs = field(default_factory=ObjectivesArgs)
    """What the alert rules hold the fleet to."""
    model_servers: Sequence[str] = (MODEL_SERVER,)
    """Components of the model servers (`ModelServerArgs.component`)."""
    workload: WorkloadArgs = ORDINARY
    """On GPU nodes the exporter goes wherever there are GPUs."""


class Monitoring(pulumi.ComponentResource):
    """One exporter for the cache; with GPUs, one more on each GPU node that reads NVML and nothing else.

    For example:

        Monitoring("monitoring", MonitoringArgs(namespace="fleet", cache_secret="cache-auth",
                                                image="registry.example.com/metrics-exporter@sha256:" + 64 * "0",
                                                resources=ResourceArgs(cpu="100m", memory="256Mi"),
                                                gpu_nodes=True, runtime_class="nvidia"))
    """

    def __init__(self, name: str, args: MonitoringArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(type_token("Monitoring"), name, {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        runs = objects.account(f"{name}-account", METRICS_EXPORTER, args.namespace, child, args.workload)
        k8s.apps.v1.Deployment(
            f"{name}-fleet",
            metadata=objects.metadata(METRICS_EXPORTER, args.namespace),
            spec=k8s.apps.v1.DeploymentSpecArgs(replicas=1, selector=_match("fleet"), template=_template("fleet", _pod(args, gpus=False))),
            opts=runs,
        )
        objects.service(f"{name}-service", METRICS_EXPORTER, args.namespace, {"metrics": PORTS[METRICS_EXPORTER]}, child)
        if args.gpu_nodes:
            self._on_gpu_nodes(name, args, runs)
        self._rules(name, args, child)
        for component, port in metric_ports(args.model_servers).items() if args.monitors else ():
            _monitor(f"{name}-{component}", args, component, port, child)
        _config_map(f"{name}-dashboard", args, "grafana", dashboards.files(), {"grafana_dashboard": "1"}, child)
        self.register_outputs({})

    @staticmethod
    def _on_gpu_nodes(name: str, args: MonitoringArgs, runs: pulumi.ResourceOptions) -> None:
        pod = _pod(args, gpus=True)
        # The RuntimeClass says so, too, but the DaemonSet controller looks at the template alone when it chooses nodes.
        # Of the workload's own labels that of the architecture alone counts, since GPUs are read in every pool.
        own = {name: value for name, value in args.workload.node_selector.items() if name == ARCHITECTURE}
        pod.node_selector = {**own, **args.gpu_node_labels}
        # One on each node: there is nothing to spread.
        pod.topology_spread_constraints = None
        pod.tolerations = [pods.tolerate_gpu_nodes(), *tolerations(args.workload)]
        k8s.apps.v1.DaemonSet(
            f"{name}-gpus",
            metadata=k8s.meta.v1.ObjectMetaArgs(name=f"{METRICS_EXPORTER}-gpu", namespace=args.namespace, labels=labels(METRICS_EXPORTER)),
            spec=k8s.apps.v1.DaemonSetSpecArgs(selector=_match("gpu"), template=_template("gpu", pod)),
            # A node that joins without its driver must not fail the update of everything else.
            opts=pulumi.ResourceOptions.merge(
                runs, pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create="10m", update="10m"))
            ),
        )

    @staticmethod
    def _rules(name: str, args: MonitoringArgs, child: pulumi.ResourceOptions) -> None:
        groups = alerts.rule_groups(args.objectives)
        if args.alert_rules == "config-map":
            rules = yaml.safe_dump({"groups": groups}, sort_keys=False, width=200)
            marks = {"prometheus_rules": "1", **args.labels}
            _config_map(f"{name}-rules", args, "prometheus", {"modelfleet.rules.yaml": rules}, marks, child)
            return
        k8s.apiextensions.CustomResource(
            f"{name}-rules",
            api_version="monitoring.coreos.com/v1",
            kind="PrometheusRule",
            metadata=k8s.meta.v1.ObjectMetaArgs(
                name="modelfleet", namespace=args.namespace, labels={**labels(METRICS_EXPORTER), **args.labels}
            ),
            spec={"groups": groups},
            opts=child,
        )


def _monitor(name: str, args: MonitoringArgs, component: str, port: int, opts: pulumi.ResourceOptions) -> None:
    """One for each component: their ports have other names."""
    pods_of_it = {"matchLabels": selector(component)}
    operator: dict[str, Any] = {"selector": pods_of_it, "podMetricsEndpoints": [{"port": PORT_NAMES[kind_of(component)]}]}
    google: dict[str, Any] = {"selector": pods_of_it, "endpoints": [{"port": port, "interval": "15s"}]}
    group, kind, spec = {
        "pod-monitor": ("monitoring.coreos.com", "PodMonitor", operator),
        "pod-monitoring": ("monitoring.googleapis.com", "PodMonitoring", google),
    }[args.monitors or "pod-monitor"]
    metadata = k8s.meta.v1.ObjectMetaArgs(name=component, namespace=args.namespace, labels={**labels(component), **args.labels})
    k8s.apiextensions.CustomResource(name, api_version=f"{group}/v1", kind=kind, metadata=metadata, spec=spec, opts=opts)


def scraped(args: pulumi.ResourceTransformationArgs) -> None:
    """Annotate every pod below a component that has metrics, for a Prometheus that goes by these annotations:
    `ResourceOptions(transformations=[scraped])`."""
    template = getattr(args.props.get("spec"), "template", None)
    if isinstance(template, core.PodTemplateSpecArgs) and isinstance(template.metadata, k8s.meta.v1.ObjectMetaArgs):
        component = cast("dict[str, str]", template.metadata.labels or {}).get("app.kubernetes.io/name", "")
        if (port := SCRAPED.get(kind_of(component))) is not None:
            own = {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}
            template.metadata.annotations = {**own, **cast("dict[str, str]", template.metadata.annotations or {})}


def _config_map(
    name: str,
    args: MonitoringArgs,
    reader: str,
    data: Mapping[str, str],
    marks: Mapping[str, str],
    opts: pulumi.ResourceOptions,
) -> None:
    """For a program of the operator's, which finds it by its labels."""
    all_labels = labels(METRICS_EXPORTER) | {READER_LABEL: reader, **marks}
    metadata = k8s.meta.v1.ObjectMetaArgs(name=f"modelfleet-{reader}", namespace=args.namespace, labels=all_labels)
    core.ConfigMap(name, metadata=metadata, data=dict(data), opts=opts)


def _match(exporter: str) -> k8s.meta.v1.LabelSelectorArgs:
    return k8s.meta.v1.LabelSelectorArgs(match_labels=selector(METRICS_EXPORTER) | {_EXPORTER: exporter})


def _template(exporter: str, pod: core.PodSpecArgs) -> core.PodTemplateSpecArgs:
    own = k8s.meta.v1.ObjectMetaArgs(labels=labels(METRICS_EXPORTER) | {_EXPORTER: exporter})
    return core.PodTemplateSpecArgs(metadata=own, spec=pod)


def _pod(args: MonitoringArgs, *, gpus: bool) -> core.PodSpecArgs:
    port = PORTS[METRICS_EXPORTER]
    tmp, tmp_mount = containers.scratch()
    volumes, mounts = [tmp], [tmp_mount]
    values: dict[str, pulumi.Input[str]] = {
        **containers.HOME,
        "EXPORTER_PORT": str(port),
        "EXPORTER_NVML": "1" if gpus else "0",
    }
    if gpus:
        # The node's driver libraries, and every GPU without claiming one.
        values |= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"}
    else:
        cache = access(args.cache_secret, args.cache_user)
        # Nobody has to scan: the pod starts without it, and has the file when there is one.
        scan = core.VolumeArgs(name="scan", config_map=core.ConfigMapVolumeSourceArgs(name=SCAN_RESULT, optional=True))
        seen = core.VolumeMountArgs(name="scan", mount_path="/etc/scan", read_only=True)
        volumes, mounts = [*volumes, cache.volume, scan], [*mounts, cache.mount, seen]
        values |= {
            "EXPORTER_SCAN_FILE": f"/etc/scan/{SCAN_FILE}",
            "EXPORTER_CACHE_URL": cache.url,
            "EXPORTER_CACHE_PASSWORD_FILE": cache.password_file,
        }
    container = core.ContainerArgs(
        name=METRICS_EXPORTER,
        image=args.image,
        env=[*containers.env(values), containers.field("NODE_NAME", "spec.nodeName")],
        ports=[core.ContainerPortArgs(name="metrics", container_port=port)],
        resources=containers.resources(args.resources),
        security_context=containers.security(),
        volume_mounts=mounts,
        readiness_probe=containers.http_probe("/health", port),
        liveness_probe=containers.liveness(port),
    )
    on_gpus = pods.Placement(workload=args.workload, runtime_class=args.runtime_class, priority_class=args.priority_class)
    placement = on_gpus if gpus else pods.Placement(workload=args.workload)
    return pods.spec(METRICS_EXPORTER, [container], volumes, placement)
