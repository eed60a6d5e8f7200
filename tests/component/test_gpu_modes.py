"""Every way of getting at GPUs, as the whole prod stack has it: what pods ask for is what is counted, shared and allowed."""

import functools
import json
from typing import Any

import pytest

from infra.analysis.policy import rules
from infra.program import stack
from infra.program.settings import parse
from tests.component.harness import render, rendered
from tests.unit.test_settings import REFS, document
from tests.unit.test_settings_fuzz import GOOD, with_config

H100 = {"enabled": True, "memory": "81559Mi"}
MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "time-slicing": {"sharing": {"strategy": "time-slicing", "replicas": 2, "acknowledgeNoIsolation": True}},
    "mps": {"sharing": {"strategy": "mps", "replicas": 3}},
    "mig": {"sharing": {"strategy": "mig", "profile": "3g.40gb"}},
    "dra": {"allocation": "dra"},
    "dra-mig": {"allocation": "dra", "sharing": {"strategy": "mig", "profile": "3g.40gb"}},
}
RESOURCES = {
    "whole": "nvidia.com/gpu",
    "time-slicing": "nvidia.com/gpu.shared",
    "mps": "nvidia.com/gpu.shared",
    "mig": "nvidia.com/mig-3g.40gb",
}
DEVICES = {"dra": "gpu.nvidia.com", "dra-mig": "mig.nvidia.com"}


@functools.cache
def objects(mode: str) -> list[dict[str, Any]]:
    """Everything that the stack registers in that mode, with names as the provider would make them."""
    config = document("prod") | {"images": {"refs": REFS}, "gpu": H100 | MODES[mode]}
    config["governance"]["production"] = mode != "time-slicing"
    settings = parse(rendered(config))
    found: list[dict[str, Any]] = []

    def build() -> None:
        recorder = render(lambda: stack.build(settings))
        for resource in recorder.resources:
            if "kind" in resource.inputs:
                resource.inputs["metadata"].setdefault("name", f"{resource.name}-auto")
                found.append(resource.inputs)

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **GOOD}, build, tuple(GOOD))
    return found


def one(found: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (item,) = (item for item in found if item["kind"] == kind and name in item["metadata"]["name"])
    return item


@pytest.mark.parametrize("mode", RESOURCES)
def test_the_resource_that_pods_ask_for_is_the_one_that_is_counted(mode: str) -> None:
    found = objects(mode)
    resource = RESOURCES[mode]
    (container,) = one(found, "StatefulSet", "ollama")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"][resource] == container["resources"]["requests"][resource] == "1"
    assert one(found, "ResourceQuota", "quota")["spec"]["hard"][f"requests.{resource}"] == "8"
    assert one(found, "ResourceQuota", "batch")["spec"]["hard"] == {f"requests.{resource}": "5"}
    # The quota caps GPUs. A maximum would need a default, and that tolerates the taint of GPU nodes for everybody where the cluster has
    # ExtendedResourceToleration: it looks at the names of resources, and not at their amounts.
    assert resource not in json.dumps(one(found, "LimitRange"))
    assert not [item for item in found if item["kind"] == "ResourceClaimTemplate"]


@pytest.mark.parametrize("mode", DEVICES)
def test_claimed_devices_are_those_of_the_template_and_the_quota(mode: str) -> None:
    found = objects(mode)
    template = one(found, "ResourceClaimTemplate")
    pod = one(found, "StatefulSet", "ollama")["spec"]["template"]["spec"]
    assert pod["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": template["metadata"]["name"]}]
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["deviceClassName"] == DEVICES[mode]
    assert one(found, "ResourceQuota")["spec"]["hard"][f"{DEVICES[mode]}.deviceclass.resource.k8s.io/devices"] == "8"
    # The RuntimeClass still brings the node selector and the toleration.
    assert pod["runtimeClassName"] == "nvidia"


@pytest.mark.parametrize("mode", MODES)
def test_the_device_plugin_is_configured_where_gpus_are_shared_by_it(mode: str) -> None:
    configured = [item for item in objects(mode) if item["kind"] == "ConfigMap" and item["metadata"].get("namespace") == "gpu-operator"]
    assert len(configured) == (mode in ("time-slicing", "mps", "mig"))


@pytest.mark.parametrize("mode", MODES)
def test_no_rule_is_broken(mode: str) -> None:
    assert rules.violations(objects(mode)) == []
