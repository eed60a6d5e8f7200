"""Numbers that an autoscaler owns, the activator, and what an operator's programs find."""

import dataclasses
import json

import pulumi
import pytest
import yaml

import components as c
from components import pods
from infra.analysis.policy import rules
from tests.component.harness import Recorder, render
from tests.component.test_components import API_SERVER, OLLAMA, SMALL, network

ACTIVATOR = c.ActivatorArgs(
    namespace="ns", image="x@sha256:1", replicas=3, idle_s=900, resources=SMALL
)  # fmt: skip
MONITORING = c.MonitoringArgs(
    namespace="ns",
    image="x@sha256:1",
    cache_secret="cache",
    resources=SMALL,
    gpu_nodes=False,
    runtime_class=None,
)


def test_an_autoscaler_begins_with_the_number_that_is_wanted_and_owns_it_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out, it would be 1: also where it was 3 a moment ago, since nobody else has owned it yet."""
    ignored: list[str] = []
    before = pods.scaled_by_others

    def scaled_by_others(opts: pulumi.ResourceOptions) -> pulumi.ResourceOptions:
        found = before(opts)
        ignored.extend(found.ignore_changes or [])
        return found

    monkeypatch.setattr(pods, "scaled_by_others", scaled_by_others)
    fleet = render(lambda: c.OllamaFleet("ollama", dataclasses.replace(OLLAMA, replicas=3, autoscaled=True, keep_copies=False)))
    assert fleet.one("StatefulSet")["spec"]["replicas"] == 3
    assert fleet.one("StatefulSet")["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Delete"
    api = render(lambda: c.ApiServer("api", dataclasses.replace(API_SERVER, replicas=3, autoscaled=True, hold_s=600)))
    assert api.one("Deployment")["spec"]["replicas"] == 3
    assert ignored == ["spec.replicas", "spec.replicas"]
    env = {entry["name"]: entry.get("value") for entry in api.one("Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["API_SERVER_HOLD_S"] == "600"


@pytest.fixture(scope="module")
def activator() -> Recorder:
    return render(lambda: c.Activator("activator", ACTIVATOR))


def test_the_activator_may_only_scale_the_fleet(activator: Recorder) -> None:
    assert activator.one("Role")["rules"] == [
        {"apiGroups": ["apps"], "resources": ["statefulsets/scale"], "resourceNames": ["ollama"], "verbs": ["get", "patch"]}
    ]
    pod = activator.one("Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    sources = next(volume["projected"]["sources"] for volume in pod["volumes"] if "projected" in volume)
    assert sources[0]["serviceAccountToken"]["expirationSeconds"] == 3600
    assert pod["serviceAccountName"] == activator.one("RoleBinding")["subjects"][0]["name"]


def test_the_activator_reaches_the_cluster_and_the_gateways_alone() -> None:
    policies, without = network(kubernetes_cidrs=["10.0.0.1/32"]), network()
    own = policies.pop("activator")
    assert own["ingress"] == []
    gateways, cluster, dns = own["egress"]
    assert gateways["to"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "api-server"}}}]
    assert cluster["to"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}]
    assert {port["port"] for port in dns["ports"]} == {53}
    # Its only trace at others: the gateways hear it, as long as it is there.
    added = [rule for rule in policies["api-server"]["ingress"] if rule not in without["api-server"]["ingress"]]
    asked = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "activator"}}}
    assert added == [{"from": [asked], "ports": [{"port": 9464, "protocol": "TCP"}]}]
    policies["api-server"]["ingress"].remove(added[0])
    assert policies == without


def test_the_activator_knows_its_bounds_and_the_names_of_the_servers(activator: Recorder) -> None:
    container = activator.one("Deployment")["spec"]["template"]["spec"]["containers"][0]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (env["ACTIVATOR_MIN_REPLICAS"], env["ACTIVATOR_REPLICAS"], env["ACTIVATOR_SERVERS"]) == ("0", "3", "ollama")
    fleet = render(lambda: c.OllamaFleet("ollama", OLLAMA))
    assert fleet.one("StatefulSet")["spec"]["serviceName"] == fleet.one("StatefulSet")["metadata"]["name"] == env["ACTIVATOR_SERVERS"]


def test_the_activator_is_hardened(activator: Recorder) -> None:
    deployment = {"kind": "Deployment", **activator.one("Deployment")}
    assert rules.pods_are_restricted([deployment]) == []
    assert rules.servers_are_probed([deployment]) == []
    assert rules.containers_ask_for_what_they_need([deployment]) == []


def test_alert_rules_come_as_a_file_or_as_an_operators_object() -> None:
    recorder = render(lambda: c.Monitoring("monitoring", MONITORING))
    maps = {item["metadata"]["name"]: item for item in recorder.kind("ConfigMap")}
    groups = yaml.safe_load(maps["modelfleet-prometheus"]["data"]["modelfleet.rules.yaml"])["groups"]
    board = maps["modelfleet-grafana"]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["modelfleet.json"])["panels"]
    assert not rules.config_maps_are_used([{"kind": "ConfigMap", **item} for item in maps.values()])
    operator = render(lambda: c.Monitoring("monitoring", dataclasses.replace(MONITORING, alert_rules="prometheus-rule")))
    assert operator.one("PrometheusRule")["spec"]["groups"] == groups
    assert [item["metadata"]["name"] for item in operator.kind("ConfigMap")] == ["modelfleet-grafana"]
