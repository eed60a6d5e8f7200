"""Objects are held against the schemas of the API server, and nothing unknown passes."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import components as c
from infra.analysis.manifests import schema, schema_source
from tests.component.harness import render
from tests.component.test_scale import MONITORING

GOLDEN = Path(__file__).parents[1] / "golden"
SET = yaml.safe_load((GOLDEN / "dev" / "statefulset-ollama.yaml").read_text())


def container(item: dict[str, Any]) -> dict[str, Any]:
    return item["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_everything_that_we_render_is_valid(path: Path) -> None:
    assert schema.problems(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda item: item["spec"].update(replicsa=2),
            "StatefulSet/ollama: got the unknown field replicsa in spec, want one of minReadySeconds",
        ),
        (lambda item: container(item).update(livenesProbe={}), "got the unknown field livenesProbe in spec.template.spec.containers.0"),
        (lambda item: item["spec"].update(replicas="2"), "got '2' at spec.replicas, want integer; correct it"),
        (lambda item: item["spec"].pop("selector"), "got spec without a field ('selector' is a required property)"),
        (lambda item: container(item)["ports"][0].pop("containerPort"), "'containerPort' is a required property"),
        (lambda item: item.update(status={}), "got the unknown field status in the object"),
        (
            lambda item: container(item)["readinessProbe"].update(periodSeconds=None),
            "at spec.template.spec.containers.0.readinessProbe.periodSeconds",
        ),
        (lambda item: item.update(apiVersion="apps/v1beta1"), "got apps/v1beta1/StatefulSet, want a kind with a schema"),
    ],
)
def test_a_mistake_is_named(change: Callable[[dict[str, Any]], object], text: str) -> None:
    item = copy.deepcopy(SET)
    change(item)
    (line,) = schema.problems(item)
    assert text in line
    assert "; " in line


@pytest.mark.parametrize("port", [80, "http"])
def test_a_port_may_be_a_number_or_a_name(port: int | str) -> None:
    item = copy.deepcopy(SET)
    container(item)["livenessProbe"]["httpGet"]["port"] = port
    assert schema.problems(item) == []


def test_the_generator_follows_references_and_drops_prose_defaults_and_status() -> None:
    schemas: dict[str, Any] = {
        "Role": {
            "type": "object",
            "description": "a role",
            "properties": {
                "rules": {"type": "array", "items": {"allOf": [{"$ref": "#/components/schemas/Rule"}], "default": {}}},
                "status": {},
            },
            "x-kubernetes-group-version-kind": [{"group": "rbac.authorization.k8s.io", "version": "v1", "kind": "Role"}],
        },
        "Rule": {"type": "object", "properties": {"description": {"type": "string", "description": "a field of that name stays"}}},
        "Unused": {"type": "string"},
    }
    empty = {"components": {"schemas": {}}}
    found = schema_source.generate(
        lambda path: {"components": {"schemas": schemas}} if path == "apis/rbac.authorization.k8s.io/v1" else empty
    )
    assert found == {
        "kinds": {"rbac.authorization.k8s.io/v1/Role": "Role"},
        "$defs": {
            "Role": {
                "type": "object",
                "properties": {"rules": {"type": "array", "items": {"$ref": "#/$defs/Rule"}}},
                "additionalProperties": False,
            },
            "Rule": {"type": "object", "properties": {"description": {"type": "string"}}, "additionalProperties": False},
        },
    }


def test_every_kind_of_the_table_has_its_schema() -> None:
    wanted = {f"{version}/{kind}" for version, kinds in schema.KINDS.items() for kind in kinds}
    assert schema.document()["kinds"].keys() == wanted | schema.CUSTOM.keys()


def prometheus_rule() -> dict[str, Any]:
    """What monitoring.alertRules: prometheus-rule renders."""
    recorder = render(lambda: c.Monitoring("m", dataclasses.replace(MONITORING, alert_rules="prometheus-rule")))
    return recorder.one("PrometheusRule")


def test_our_prometheus_rule_is_valid() -> None:
    assert schema.problems(prometheus_rule()) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rule: rule.update(exprr=rule.pop("expr")), "got the unknown field exprr in spec.groups.0.rules.0"),
        (lambda rule: rule.pop("alert"), "'alert' is a required property"),
        (lambda rule: rule.update({"for": "5 minutes"}), "got '5 minutes' at spec.groups.0.rules.0.for"),
        (lambda rule: rule.update(record="x"), "got the unknown field alert"),
        (lambda rule: rule["labels"].update(severity=1), "got '1' at spec.groups.0.rules.0.labels.severity, want string"),
    ],
)
def test_a_mistake_in_a_prometheus_rule_is_named(change: Callable[[dict[str, Any]], object], text: str) -> None:
    item = copy.deepcopy(prometheus_rule())
    change(item["spec"]["groups"][0]["rules"][0])
    assert text in "\n".join(schema.problems(item))


def test_a_kind_of_another_operator_does_not_pass_unread() -> None:
    item = {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {"name": "x"}, "spec": {}}
    assert schema.problems(item) == [
        "ServiceMonitor/x: got monitoring.coreos.com/v1/ServiceMonitor, want a kind with a schema; "
        "add it to KINDS or CUSTOM of infra/analysis/manifests/schema.py"
    ]


@pytest.mark.parametrize(("monitors", "kind"), [("pod-monitor", "PodMonitor"), ("pod-monitoring", "PodMonitoring")])
def test_monitors_of_operators_are_checked_too(monitors: Any, kind: str) -> None:
    args = c.MonitoringArgs(namespace="n", image="i", cache_secret="s", resources=c.ResourceArgs(cpu="1m", memory="1Mi"), monitors=monitors)
    for made in render(lambda: c.Monitoring("m", args)).kind(kind):
        assert schema.problems(made) == []
        assert schema.problems({**made, "spec": {**made["spec"], "endpoint": []}})
        assert schema.problems({**made, "spec": {**made["spec"], "selector": {}}})
