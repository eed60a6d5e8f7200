"""Numbers that an autoscaler owns, the activator, and what an operator's programs find."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pulumi
import pytest
import yaml

import components as c
from components import pods
from components.contract import SCALES_VARIABLE
from infra.analysis.policy import rules
from infra.program import stack
from infra.program.settings import parse
from tests.component.harness import Recorder, render, rendered
from tests.component.test_components import API_SERVER, OLLAMA, SMALL, model_server, network
from tests.unit.test_settings import document
from tests.unit.test_settings_fuzz import GOOD, with_config

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


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Properties that an update leaves alone, of what is rendered in the test."""
    ignored: list[str] = []
    before = pods.scaled_by_others

    def scaled_by_others(opts: pulumi.ResourceOptions) -> pulumi.ResourceOptions:
        found = before(opts)
        ignored.extend(found.ignore_changes or [])
        return found

    monkeypatch.setattr(pods, "scaled_by_others", scaled_by_others)
    return ignored


def test_an_autoscaler_begins_with_the_number_that_is_wanted_and_owns_it_then(ignored: list[str]) -> None:
    """Left out, it would be 1: also where it was 3 a moment ago, since nobody else has owned it yet."""
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


def test_it_scales_model_servers_beside_the_fleet_or_alone(activator: Recorder) -> None:
    server = c.ScaleArgs(replicas=2, min_replicas=1, idle_s=60)

    def scales(recorder: Recorder) -> dict[str, dict[str, int]]:
        container = recorder.one("Deployment")["spec"]["template"]["spec"]["containers"][0]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["ACTIVATOR_FLEET"] == "ollama"
        assert env["ACTIVATOR_STATEFUL_SETS_URL"].endswith("/namespaces/ns/statefulsets")
        found: dict[str, dict[str, int]] = json.loads(env[SCALES_VARIABLE])
        assert recorder.one("Role")["rules"][0]["resourceNames"] == list(found)
        return found

    fleet = {"ollama": {"least": 0, "most": 3, "idle_s": 900}}
    of_server = {"model-server-b": {"least": 1, "most": 2, "idle_s": 60}}
    assert scales(activator) == fleet
    both = dataclasses.replace(ACTIVATOR, model_servers={"model-server-b": server})
    assert scales(render(lambda: c.Activator("activator", both))) == fleet | of_server
    assert scales(render(lambda: c.Activator("activator", dataclasses.replace(both, replicas=0)))) == of_server


def test_a_model_server_that_is_scaled_begins_with_all_and_is_left_alone_then(ignored: list[str]) -> None:
    fixed = model_server().one("StatefulSet")
    assert (ignored, "annotations" in fixed["metadata"]) == ([], False)
    scaled = model_server(autoscaled=True).one("StatefulSet")
    assert ignored == ["spec.replicas"]
    assert scaled["spec"] == fixed["spec"]
    assert scaled["metadata"]["annotations"] == {"pulumi.com/waitFor": "jsonpath={.metadata.uid}"}, "at zero nobody becomes ready"


def stack_objects(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a stack registers, by `Kind/name`."""
    found: dict[str, dict[str, Any]] = {}

    def build() -> None:
        for resource in render(lambda: stack.build(parse(rendered(config)))).resources:
            if "kind" in resource.inputs:
                found[f"{resource.inputs['kind']}/{resource.inputs['metadata'].get('name')}"] = resource.inputs

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **GOOD}, build, tuple(GOOD))
    return found


@pytest.mark.parametrize("least", [0, 1])
def test_the_stack_lets_the_activator_at_the_servers_that_the_configuration_says(least: int) -> None:
    config = document()
    config["modelServers"][0] |= {"replicas": 2, "scale": {"min": least, "keepCopies": False, "kubernetesCidrs": ["10.0.0.1/32"]}}
    made = stack_objects(config)
    assert made["Role/activator"]["rules"][0]["resourceNames"] == ["model-server"]
    server = made["StatefulSet/model-server"]
    assert server["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Delete"
    assert made["StatefulSet/ollama"]["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Retain"
    assert "10.0.0.1/32" in str(made["NetworkPolicy/activator"])
    env = {each["name"]: each.get("value") for each in made["Deployment/api-server"]["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["API_SERVER_HOLD_S"] == ("600" if least == 0 else "0")
    assert "Deployment/activator" not in stack_objects(document())


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


@pytest.mark.parametrize("servers", [lambda: render(lambda: c.OllamaFleet("ollama", OLLAMA)), model_server])
def test_the_servers_that_it_scales_have_the_name_of_a_headless_service(servers: Callable[[], Recorder]) -> None:
    """It looks the last one up there."""
    found = servers()
    spec = found.one("StatefulSet")["spec"]
    assert spec["serviceName"] == found.one("StatefulSet")["metadata"]["name"]
    assert found.named("Service", spec["serviceName"])["spec"]["clusterIP"] == "None"


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
