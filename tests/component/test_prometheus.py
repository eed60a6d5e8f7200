"""A Prometheus of the stack's own: what it reads, who reads it, and what it may do."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import pulumi
import pulumi_kubernetes as k8s
import pytest
import yaml

import components as c
from components import alerts, pods
from components.contract import PROMETHEUS, SCRAPED
from components.monitoring import scraped
from components.prometheus import configuration
from infra.analysis.policy import rules
from infra.program.settings.services import PrometheusSettings
from tests.component.harness import Recorder, render
from tests.component.test_components import network

ARGS = c.PrometheusArgs(
    namespace="ns",
    image="x@sha256:1",
    storage_class="fast",
    size="8Gi",
    retention_bytes=6 * 2**30,
    retention_days=40,
    retain=True,
    resources=c.ResourceArgs(cpu="100m", memory="512Mi"),
)


@pytest.fixture(scope="module")
def made() -> Recorder:
    return render(lambda: c.Prometheus("prometheus", ARGS))


def test_it_has_no_right_and_no_token(made: Recorder) -> None:
    assert not [each.typ for each in made.resources if ":rbac." in each.typ]
    pod = made.one("Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert not [volume for volume in pod["volumes"] if "projected" in volume]
    assert made.one("ServiceAccount")["automountServiceAccountToken"] is False


def test_samples_outlive_their_pod_and_leave_room_on_their_volume(made: Recorder) -> None:
    claim, deployment = made.one("PersistentVolumeClaim"), made.one("Deployment")["spec"]
    assert (claim["spec"]["storageClassName"], claim["spec"]["accessModes"]) == ("fast", ["ReadWriteOnce"])
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    (container,) = deployment["template"]["spec"]["containers"]
    (data,) = (mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly"))
    assert f"--storage.tsdb.path={data}/tsdb" in container["args"]
    assert {"--storage.tsdb.retention.time=40d", f"--storage.tsdb.retention.size={6 * 2**30}B"} <= {*container["args"]}
    assert not [flag for flag in container["args"] if "admin-api" in flag or "lifecycle" in flag]
    settings = PrometheusSettings.model_validate({"size": "10Gi", "resources": {"cpu": "100m", "memory": "512Mi"}})
    assert settings.retention_bytes == 8 * 2**30


def test_its_rules_are_those_that_others_get(made: Recorder) -> None:
    data = made.one("ConfigMap")["data"]
    assert yaml.safe_load(data["rules.yaml"]) == {"groups": alerts.rule_groups()}
    assert yaml.safe_load(data["prometheus.yaml"])["rule_files"] == ["rules.yaml"]


def test_another_configuration_is_another_object(made: Recorder) -> None:
    assert made.one("ConfigMap")["immutable"] is True
    assert "name" not in next(each.inputs["metadata"] for each in made.resources if each.typ.endswith(":ConfigMap"))


def test_it_finds_every_pod_of_every_component_by_its_address(made: Recorder) -> None:
    services = {item["metadata"]["name"]: item["spec"] for item in made.kind("Service")}
    jobs = {job["job_name"]: job for job in configuration("ns")["scrape_configs"]}
    assert jobs.keys() == SCRAPED.keys()
    for component, job in jobs.items():
        assert {each["type"] for each in job["dns_sd_configs"]} == {"A", "AAAA"}
        assert {each["port"] for each in job["dns_sd_configs"]} == {SCRAPED[component]}
        (name,) = {name for each in job["dns_sd_configs"] for name in each["names"]}
        service = services[name]
        # Also of a pod that is not ready, or that has been told to end and waits until its last numbers are read.
        assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
        assert service["selector"] == {"app.kubernetes.io/name": component}
        assert [port["targetPort"] for port in service["ports"]] == [SCRAPED[component]]
        assert job["relabel_configs"] == [{"target_label": "namespace", "replacement": "ns"}]


def test_it_reaches_what_it_reads_and_dns_alone() -> None:
    policies, without = network(prometheus=True), network()
    assert PROMETHEUS not in without
    own = policies.pop(PROMETHEUS)
    assert own["ingress"] == [], "nobody but the kubelet, which forwards ports and probes"
    *pods, dns = own["egress"]
    reached = {(rule["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"], rule["ports"][0]["port"]) for rule in pods}
    assert reached == {*SCRAPED.items()}
    assert {port["port"] for port in dns["ports"]} == {53}
    asked = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": PROMETHEUS}}}
    for name, policy in policies.items():
        added = [rule for rule in policy.get("ingress", []) if rule not in without[name].get("ingress", [])]
        wanted = [{"from": [asked], "ports": [{"port": SCRAPED[name], "protocol": "TCP"}]}] if name in SCRAPED else []
        assert added == wanted, name


def test_named_clients_may_ask_it() -> None:
    clients = [c.PodsArgs(namespace="grafana", labels={"app": "grafana"})]
    (rule,) = network(prometheus=True, prometheus_clients=clients)[PROMETHEUS]["ingress"]
    (peer,) = rule["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "grafana"}
    assert peer["podSelector"]["matchLabels"] == {"app": "grafana"}
    assert rule["ports"] == [{"port": 9090, "protocol": "TCP"}]


def test_what_may_go_with_the_stack_is_not_protected() -> None:
    found = render(lambda: c.Prometheus("prometheus", dataclasses.replace(ARGS, retain=False))).one("PersistentVolumeClaim")
    assert found["metadata"]["annotations"]["modelfleet.dev/protected"] == "false"


MONITORING = c.MonitoringArgs(
    namespace="ns", image="x@sha256:1", cache_secret="cache", resources=c.ResourceArgs(cpu="1m", memory="1Mi"), labels={"release": "ours"}
)
DEV = Path(__file__).resolve().parents[1] / "golden" / "dev"


def open_ports(component: str) -> dict[str, int]:
    """Name to number of what the pods of the dev stack open."""
    kind = "statefulset" if component in ("ollama", "model-server") else "deployment"
    pod = yaml.safe_load((DEV / f"{kind}-{component}.yaml").read_text())["spec"]["template"]["spec"]
    every = [*pod["containers"], *pod.get("initContainers", [])]
    return {port["name"]: port["containerPort"] for each in every for port in each.get("ports", [])}


def test_a_prometheus_operator_finds_every_component_by_the_labels_that_it_selects() -> None:
    made = render(lambda: c.Monitoring("m", dataclasses.replace(MONITORING, monitors="pod-monitor", alert_rules="prometheus-rule")))
    monitors = {each["metadata"]["name"]: each for each in made.kind("PodMonitor")}
    assert monitors.keys() == SCRAPED.keys()
    for component, monitor in monitors.items():
        assert (monitor["apiVersion"], monitor["metadata"]["labels"]["release"]) == ("monitoring.coreos.com/v1", "ours")
        assert monitor["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": component}
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert open_ports(component)[endpoint["port"]] == SCRAPED[component]
    assert made.one("PrometheusRule")["metadata"]["labels"]["release"] == "ours"


def test_googles_managed_prometheus_does_too() -> None:
    made = render(lambda: c.Monitoring("m", dataclasses.replace(MONITORING, monitors="pod-monitoring")))
    found = {each["metadata"]["name"]: each["spec"]["endpoints"] for each in made.kind("PodMonitoring")}
    assert found == {component: [{"port": port, "interval": "15s"}] for component, port in SCRAPED.items()}
    assert not made.kind("PodMonitor")
    rules = next(each for each in made.kind("ConfigMap") if "modelfleet.rules.yaml" in each["data"])
    assert rules["metadata"]["labels"]["release"] == "ours"


def test_annotations_are_of_the_pods_with_metrics_alone() -> None:
    for component in (*SCRAPED, "cache-server"):
        template = pods.template(component, k8s.core.v1.PodSpecArgs(containers=[]), {"a": "b"})
        props = {"spec": k8s.apps.v1.DeploymentSpecArgs(selector=k8s.meta.v1.LabelSelectorArgs(), template=template)}
        scraped(
            pulumi.ResourceTransformationArgs(resource=cast("Any", None), type_="", name="", props=props, opts=pulumi.ResourceOptions())
        )
        assert template.metadata is not None
        found = cast("k8s.meta.v1.ObjectMetaArgs", template.metadata).annotations
        own = {"prometheus.io/scrape": "true", "prometheus.io/port": str(SCRAPED.get(component)), "prometheus.io/path": "/metrics"}
        assert found == {"a": "b"} | (own if component in SCRAPED else {})


@pytest.mark.parametrize(
    ("direction", "rule", "found"),
    [
        ("ingress", {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 9090}]}, "prometheus open to 10.0.0.0/8"),
        ("ingress", {"from": [{"namespaceSelector": {}}], "ports": [{"port": 9090}]}, "prometheus open to namespaces of any kind"),
        ("ingress", {"from": [{"podSelector": {}}], "ports": [{"port": 9090}]}, "prometheus open to pods of any kind"),
        ("egress", {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 443}]}, "a way from prometheus to 0.0.0.0/0"),
    ],
)
def test_the_policy_pack_knows_who_may_ask_it_and_where_it_may_go(direction: str, rule: dict[str, Any], found: str) -> None:
    objects = [yaml.safe_load(path.read_text()) for path in sorted(DEV.glob("*.yaml"))]
    assert rules.violations(objects) == []
    policy = next(item for item in objects if (item["kind"], item["metadata"]["name"]) == ("NetworkPolicy", PROMETHEUS))
    policy["spec"].setdefault(direction, []).append(rule)
    assert [line for line in rules.violations(objects) if found in line]
