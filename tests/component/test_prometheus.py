"""A Prometheus of the stack's own: what it reads, who reads it, and what it may do."""

import dataclasses
import re
from typing import Any

import pytest
import yaml

import components as c
from components import alerts
from components.contract import PORTS, PROMETHEUS, SCRAPED
from components.prometheus import configuration
from infra.program.cluster import with_its_addresses
from infra.program.settings.section import SettingsError
from infra.program.settings.services import MonitoringSettings, PrometheusSettings
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
API = "10.0.0.1/32"


@pytest.fixture(scope="module")
def made() -> Recorder:
    return render(lambda: c.Prometheus("prometheus", ARGS))


def test_it_may_list_the_pods_of_its_namespace_and_nothing_else(made: Recorder) -> None:
    assert made.one("Role")["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
    assert not made.kind("ClusterRole")
    pod = made.one("Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == made.one("RoleBinding")["subjects"][0]["name"] == PROMETHEUS
    sources = next(volume["projected"]["sources"] for volume in pod["volumes"] if "projected" in volume)
    assert sources[0]["serviceAccountToken"]["expirationSeconds"] == 3600


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


def targets(labels: dict[str, str]) -> list[dict[str, str]]:
    """What is left of a discovered port by the rules, as Prometheus applies them."""
    (job,) = configuration("ns")["scrape_configs"]
    found = dict(labels)
    for rule in job["relabel_configs"]:
        text = ";".join(found.get(name, "") for name in rule["source_labels"])
        matches = re.fullmatch(rule.get("regex", "(.*)"), text) is not None
        if (rule.get("action") == "keep" and not matches) or (rule.get("action") == "drop" and matches):
            return []
        if "target_label" in rule:
            found[rule["target_label"]] = text
    return [{name: value for name, value in found.items() if not name.startswith("__")}]


def discovered(component: str, port: int, phase: str = "Running") -> dict[str, str]:
    return {
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": component,
        "__meta_kubernetes_pod_container_port_number": str(port),
        "__meta_kubernetes_pod_phase": phase,
        "__meta_kubernetes_namespace": "ns",
        "__meta_kubernetes_pod_name": f"{component}-0",
    }


def test_it_reads_the_metrics_of_every_component_under_the_names_of_its_pods() -> None:
    for component, port in SCRAPED.items():
        assert targets(discovered(component, port)) == [{"job": component, "namespace": "ns", "pod": f"{component}-0"}]
        assert targets(discovered(component, port, "Failed")) == []
    for component, port in PORTS.items():
        if SCRAPED.get(component) != port:
            assert targets(discovered(component, port)) == [], component


def test_it_reaches_what_it_reads_and_the_clusters_api_alone() -> None:
    policies, without = network(prometheus_kubernetes_cidrs=[API]), network()
    assert PROMETHEUS not in without
    own = policies.pop(PROMETHEUS)
    assert own["ingress"] == [], "nobody but the kubelet, which forwards ports and probes"
    *pods, cluster = own["egress"]
    reached = {(rule["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"], rule["ports"][0]["port"]) for rule in pods}
    assert reached == {*SCRAPED.items()}
    assert cluster["to"] == [{"ipBlock": {"cidr": API}}]
    asked = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": PROMETHEUS}}}
    for name, policy in policies.items():
        added = [rule for rule in policy.get("ingress", []) if rule not in without[name].get("ingress", [])]
        wanted = [{"from": [asked], "ports": [{"port": SCRAPED[name], "protocol": "TCP"}]}] if name in SCRAPED else []
        assert added == wanted, name


def test_named_clients_may_ask_it() -> None:
    clients = [c.PodsArgs(namespace="grafana", labels={"app": "grafana"})]
    (rule,) = network(prometheus_kubernetes_cidrs=[API], prometheus_clients=clients)[PROMETHEUS]["ingress"]
    (peer,) = rule["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "grafana"}
    assert peer["podSelector"]["matchLabels"] == {"app": "grafana"}
    assert rule["ports"] == [{"port": 9090, "protocol": "TCP"}]


class Cluster:
    """One with these addresses of its API server."""

    def __init__(self, *addresses: str) -> None:
        self.addresses, self.asked = addresses, 0

    def find(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        self.asked += 1
        assert (wanted["kind"], wanted["metadata"]) == ("EndpointSlice", {"name": "kubernetes", "namespace": "default"})
        return {"endpoints": [{"addresses": [each]} for each in self.addresses]} if self.addresses else None


def monitoring(**prometheus: Any) -> MonitoringSettings:
    small = {"cpu": "20m", "memory": "256Mi"}
    return MonitoringSettings.model_validate({"resources": small, "prometheus": {"resources": small, **prometheus}})


def test_the_clusters_api_is_where_the_cluster_says() -> None:
    cluster: Any = Cluster("192.0.2.7", "2001:db8::7")
    found = with_its_addresses(monitoring(), cluster).prometheus
    assert found is not None
    assert found.kubernetes_cidrs == ["192.0.2.7/32", "2001:db8::7/128"]


def test_where_it_was_said_nobody_is_asked() -> None:
    cluster: Any = Cluster()
    assert with_its_addresses(monitoring(kubernetesCidrs=[API]), cluster) == monitoring(kubernetesCidrs=[API])
    none = monitoring().model_copy(update={"prometheus": None})
    assert with_its_addresses(none, cluster) == none
    assert cluster.asked == 0


def test_a_cluster_that_does_not_say_is_refused() -> None:
    cluster: Any = Cluster()
    with pytest.raises(SettingsError, match=r"^modelfleet:monitoring.prometheus.kubernetesCidrs: got nothing, and no EndpointSlice"):
        with_its_addresses(monitoring(), cluster)


def test_what_may_go_with_the_stack_is_not_protected() -> None:
    found = render(lambda: c.Prometheus("prometheus", dataclasses.replace(ARGS, retain=False))).one("PersistentVolumeClaim")
    assert found["metadata"]["annotations"]["modelfleet.dev/protected"] == "false"
