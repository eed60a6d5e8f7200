"""Metrics of GPUs and the cache; alert rules and a dashboard over all metrics. Ollama's come from the agent in each of its pods."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pulumi
import pulumi_kubernetes as k8s
import yaml

from . import alerts, dashboard, pods
from .contract import CACHE_SERVER, GPU_NODES, METRICS_EXPORTER, PORTS, READER_LABEL, labels, type_token

core = k8s.core.v1


@dataclass(frozen=True, kw_only=True)
class MonitoringArgs:
    """Inputs of Monitoring."""

    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    cache_secret: pulumi.Input[str]
    resources: pods.ResourceArgs
    gpu_nodes: bool = False
    """Also run one exporter on every GPU node."""
    runtime_class: pulumi.Input[str] | None = None
    alert_rules: Literal["config-map", "prometheus-rule"] = "config-map"
    """A rule file that your Prometheus mounts or a sidecar finds, or an object of the Prometheus operator."""


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
        match = k8s.meta.v1.LabelSelectorArgs
        role = "modelfleet.dev/exporter"
        k8s.apps.v1.Deployment(
            f"{name}-fleet",
            metadata=pods.metadata(METRICS_EXPORTER, args.namespace),
            spec=k8s.apps.v1.DeploymentSpecArgs(
                replicas=1,
                selector=match(match_labels=pods.selector(METRICS_EXPORTER) | {role: "fleet"}),
                template=_labelled(role, "fleet", _pod(args, gpus=False)),
            ),
            opts=child,
        )
        pods.service(f"{name}-service", METRICS_EXPORTER, args.namespace, {"metrics": PORTS[METRICS_EXPORTER]}, child)
        if args.gpu_nodes:
            gpu_pod = _pod(args, gpus=True)
            # Said here too, not by the RuntimeClass alone: the DaemonSet controller looks at the template when it chooses nodes.
            gpu_pod.node_selector = dict(GPU_NODES)
            gpu_pod.tolerations = [pods.tolerate_gpu_nodes()]
            k8s.apps.v1.DaemonSet(
                f"{name}-gpus",
                metadata=k8s.meta.v1.ObjectMetaArgs(
                    name=f"{METRICS_EXPORTER}-gpu", namespace=args.namespace, labels=pods.labels(METRICS_EXPORTER)
                ),
                spec=k8s.apps.v1.DaemonSetSpecArgs(
                    selector=match(match_labels=pods.selector(METRICS_EXPORTER) | {role: "gpu"}),
                    template=_labelled(role, "gpu", gpu_pod),
                ),
                # A node that joins without its driver must not fail the update of everything else.
                opts=pulumi.ResourceOptions.merge(
                    child, pulumi.ResourceOptions(custom_timeouts=pulumi.CustomTimeouts(create="10m", update="10m"))
                ),
            )
        self._rules(name, args, child)
        _config_map(f"{name}-dashboard", args, "grafana", {"modelfleet.json": dashboard.text()}, {"grafana_dashboard": "1"}, child)
        self.register_outputs({})

    @staticmethod
    def _rules(name: str, args: MonitoringArgs, child: pulumi.ResourceOptions) -> None:
        groups = alerts.rule_groups()
        if args.alert_rules == "config-map":
            rules = yaml.safe_dump({"groups": groups}, sort_keys=False, width=200)
            _config_map(f"{name}-rules", args, "prometheus", {"modelfleet.rules.yaml": rules}, {"prometheus_rules": "1"}, child)
            return
        k8s.apiextensions.CustomResource(
            f"{name}-rules",
            api_version="monitoring.coreos.com/v1",
            kind="PrometheusRule",
            metadata=k8s.meta.v1.ObjectMetaArgs(name="modelfleet", namespace=args.namespace, labels=labels(METRICS_EXPORTER)),
            spec={"groups": groups},
            opts=child,
        )


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


def _labelled(role: str, value: str, pod: core.PodSpecArgs) -> core.PodTemplateSpecArgs:
    return core.PodTemplateSpecArgs(
        metadata=k8s.meta.v1.ObjectMetaArgs(labels=pods.labels(METRICS_EXPORTER) | {role: value}), spec=pod
    )  # fmt: skip


def _pod(args: MonitoringArgs, *, gpus: bool) -> core.PodSpecArgs:
    port = PORTS[METRICS_EXPORTER]
    tmp, tmp_mount = pods.scratch()
    volumes, mounts = [tmp], [tmp_mount]
    values: dict[str, pulumi.Input[str]] = {"HOME": "/tmp", "EXPORTER_PORT": str(port), "EXPORTER_NVML": "1" if gpus else "0"}  # noqa: S108
    if gpus:
        # The node's driver libraries, and every GPU without claiming one.
        values |= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"}
    else:
        secret, secret_mount = pods.secret_file("cache-auth", args.cache_secret, "/etc/cache-auth")
        volumes, mounts = [*volumes, secret], [*mounts, secret_mount]
        values |= {
            "EXPORTER_CACHE_URL": f"redis://{CACHE_SERVER}:{PORTS[CACHE_SERVER]}/0",
            "EXPORTER_CACHE_PASSWORD_FILE": "/etc/cache-auth/password",
        }
    node_name = core.EnvVarArgs(
        name="NODE_NAME", value_from=core.EnvVarSourceArgs(field_ref=core.ObjectFieldSelectorArgs(field_path="spec.nodeName"))
    )  # fmt: skip
    container = core.ContainerArgs(
        name=METRICS_EXPORTER,
        image=args.image,
        env=[*pods.env(values), node_name],
        ports=[core.ContainerPortArgs(name="metrics", container_port=port)],
        resources=pods.resources(args.resources),
        security_context=pods.container_security(),
        volume_mounts=mounts,
        readiness_probe=pods.http_probe("/health", port),
        liveness_probe=pods.http_probe("/health", port, period_s=10, failures=6, timeout_s=5),
    )
    return pods.spec(METRICS_EXPORTER, [container], volumes, runtime_class=args.runtime_class if gpus else None)
