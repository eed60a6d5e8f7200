"""The prod stack in a cluster that has other fleets, rules of its own, and its own way in."""

import functools
import json
from typing import Any

import pytest

from infra.analysis.policy import rules
from infra.program import stack
from infra.program.settings import parse
from infra.program.settings.images import VERIFIER_IMAGE
from tests.component.harness import render, rendered
from tests.unit.test_settings import REFS, document
from tests.unit.test_settings_fuzz import GOOD, with_config

OF_NO_NAMESPACE = ("Namespace", "PriorityClass", "RuntimeClass", "StorageClass", "ValidatingWebhookConfiguration")
COST, NOTE = {"example.com/cost-centre": "4711"}, {"example.com/owner": "team-b"}


@functools.cache
def objects(namespace: str = "team-b") -> list[dict[str, Any]]:
    """Everything that the stack registers, with names as the provider would make them."""
    config = document("prod") | {
        "images": {"refs": {**REFS, VERIFIER_IMAGE: REFS["ollama"]}, "trust": {"publicKeys": "-----BEGIN PUBLIC KEY-----"}}
    }
    config["apiServer"] |= {
        "serviceType": "LoadBalancer",
        "clientCidrs": ["10.0.0.0/8"],
        "loadBalancerClass": "example.com/internal",
        "serviceAnnotations": {"example.com/internal": "true"},
    }
    config["gpu"] |= {"sharing": {"strategy": "mps", "replicas": 2}, "memory": "192Gi"}
    secrets = GOOD | {"verifierTls": json.dumps({"certificate": "c", "privateKey": "k"})}
    found: list[dict[str, Any]] = []

    def build() -> None:
        settings = parse(rendered(config, namespace=namespace, labels=COST, annotations=NOTE))
        for resource in render(lambda: stack.build(settings)).resources:
            if "kind" in resource.inputs:
                resource.inputs["metadata"].setdefault("name", f"{resource.name}-auto")
                found.append(resource.inputs)

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **secrets}, build, tuple(secrets))
    return found


def names(namespace: str) -> set[str]:
    """Of what is not in the fleet's namespaces."""
    inside = (namespace, f"{namespace}-admission")
    return {f"{item['kind']}/{item['metadata']['name']}" for item in objects(namespace) if item["metadata"].get("namespace") not in inside}


def test_two_fleets_of_a_cluster_have_no_object_in_common() -> None:
    ours, theirs = names("modelfleet"), names("team-b")
    assert {name.partition("/")[0] for name in theirs} == {*OF_NO_NAMESPACE, "ConfigMap"}
    assert len(ours) == len(theirs) >= 10
    assert not ours & theirs


def test_whoever_uses_a_class_names_the_fleets_own() -> None:
    made = {item["metadata"]["name"] for item in objects() if item["kind"] in OF_NO_NAMESPACE}
    pods = [item["spec"]["template"]["spec"] for item in objects() if "template" in item.get("spec", {})]
    used = {pod.get(name) for pod in pods for name in ("priorityClassName", "runtimeClassName")}
    used |= {item["spec"]["storageClassName"] for item in objects() if item["kind"] == "PersistentVolumeClaim"}
    used |= {claim["spec"]["storageClassName"] for item in objects() for claim in item.get("spec", {}).get("volumeClaimTemplates", [])}
    quotas = [item["spec"].get("scopeSelector") for item in objects() if item["kind"] == "ResourceQuota"]
    used |= {value for quota in quotas if quota for each in quota["matchExpressions"] for value in each["values"]}
    assert used - {None} <= made
    assert len(used) >= 6


@pytest.mark.parametrize(("field", "wanted"), [("labels", COST), ("annotations", NOTE)])
def test_every_object_and_every_pod_bears_what_the_clusters_rules_ask_for(field: str, wanted: dict[str, str]) -> None:
    templates = [item["spec"]["template"] for item in objects() if "template" in item.get("spec", {})]
    assert templates
    for item in [*objects(), *templates]:
        assert wanted.items() <= item["metadata"].get(field, {}).items(), item
    for item in objects():
        assert item["metadata"]["annotations"]["modelfleet.dev/stack"].endswith("/modelfleet/test")
        assert "example.com/cost-centre" not in str(item.get("spec", {}).get("selector", ""))


def test_a_load_balancer_is_told_who_makes_it_and_whom_it_lets_through() -> None:
    (service,) = (item for item in objects() if item["kind"] == "Service" and item["metadata"]["name"] == "api-server")
    assert service["metadata"]["annotations"].items() >= {"example.com/internal": "true", "pulumi.com/skipAwait": "true"}.items()
    spec = service["spec"]
    assert (spec["loadBalancerClass"], spec["loadBalancerSourceRanges"]) == ("example.com/internal", ["10.0.0.0/8"])
    assert spec["externalTrafficPolicy"] == "Local", "a policy would see the node's address"


def test_all_of_it_keeps_our_own_rules() -> None:
    assert rules.violations(objects()) == []
