"""Every way of getting at GPUs, as the whole prod stack has it: what pods ask for is what is counted, shared and allowed."""

import functools
import json
from typing import Any

import pytest

from infra.analysis.policy import rules
from infra.program import stack
from infra.program.settings import parse
from model_server.settings import Settings as ServerSettings
from tests.component.harness import render, rendered
from tests.unit.test_settings import FLEET, REFS, document
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


TREE = {"name": "qwen3-8b:bf16", "size": "16Gi", "kvBytesPerToken": 147456, "format": "safetensors"}
VLLM: dict[str, Any] = {
    "name": "chat",
    "engine": "vllm",
    "model": "qwen3-8b:bf16",
    "modelId": "qwen3-8b",
    "gpus": 1,
    "contextLength": 16384,
    "resources": {"cpu": "8", "memory": "32Gi"},
    "vllm": {"toolCallParser": "hermes", "kvCacheDtype": "fp8", "eager": True},
}


WITH_VLLM = ("whole", "mig", "dra", "dra-mig")
"""Modes in which a GPU or a partition is its server's own."""


@functools.cache
def objects(mode: str, gpus: int = 0) -> list[dict[str, Any]]:
    """Everything that the stack registers in that mode, with names as the provider would make them. `gpus`: with a server of vLLM."""
    config = document(FLEET) | {"images": {"refs": REFS}, "gpu": H100 | MODES[mode]}
    config["governance"]["production"] = mode != "time-slicing" and not gpus
    if gpus:
        config["models"].append(TREE)
        config["modelServers"].append(VLLM | {"gpus": gpus})
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


def vllm_pod(mode: str, gpus: int = 1) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """The pod of the server of vLLM, its container, and the container's variables."""
    pod = one(objects(mode, gpus), "StatefulSet", "model-server-chat")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container, {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("mode", WITH_VLLM)
def test_a_server_of_vllm_gets_gpus_as_the_fleet_does(mode: str) -> None:
    found = objects(mode, 1)
    pod, container, env = vllm_pod(mode)
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("nvidia", "gpu-priority")
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert (env["MODEL_SERVER_ENGINE"], env["MODEL_SERVER_TENSOR_PARALLEL"]) == ("vllm", "1")
    if mode in DEVICES:
        templates = {item["metadata"]["name"]: item["spec"]["spec"] for item in found if item["kind"] == "ResourceClaimTemplate"}
        assert set(templates) == {"ollama-gpu", "model-server-chat"}
        assert pod["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "model-server-chat"}]
        (request,) = templates["model-server-chat"]["devices"]["requests"]
        assert (request["exactly"]["deviceClassName"], request["exactly"]["count"]) == (DEVICES[mode], 1)
        assert container["resources"]["claims"] == [{"name": "gpu"}]
    else:
        assert container["resources"]["limits"][RESOURCES[mode]] == container["resources"]["requests"][RESOURCES[mode]] == "1"
        assert one(found, "ResourceQuota", "batch")["spec"]["hard"] == {f"requests.{RESOURCES[mode]}": "4"}


@pytest.mark.parametrize("mode", WITH_VLLM)
def test_no_rule_is_broken_by_a_server_of_vllm(mode: str) -> None:
    assert rules.violations(objects(mode, 1)) == []


def test_a_server_of_vllm_has_room_for_what_it_writes_and_time_to_begin() -> None:
    pod, container, env = vllm_pod("whole")
    [compiled] = [mount for mount in container["volumeMounts"] if mount["mountPath"] == env["MODEL_SERVER_VLLM_CACHE_DIR"]]
    copies = [mount["name"] for each in pod["initContainers"] for mount in each["volumeMounts"] if mount["mountPath"] == "/models"]
    assert copies == [compiled["name"]], "beside its copy of the weights"
    assert not compiled.get("readOnly") and compiled["subPath"]
    assert "/dev/shm" not in [mount["mountPath"] for mount in container["volumeMounts"]], "one process needs none"  # noqa: S108
    assert {
        "MODEL_SERVER_KV_CACHE_DTYPE": "fp8",
        "MODEL_SERVER_TOOL_CALL_PARSER": "hermes",
        "MODEL_SERVER_ENFORCE_EAGER": "1",
    }.items() <= env.items()
    assert not {"MODEL_SERVER_PROMPT_CACHE_MIB", "MODEL_SERVER_REASONING_PARSER", "MODEL_SERVER_LLAMA_SERVER"} & set(env)
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 900 + 2**34 // 18_000_000 - 2


def test_several_gpus_share_memory() -> None:
    pod, container, env = vllm_pod("whole", 4)
    assert env["MODEL_SERVER_TENSOR_PARALLEL"] == container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    (shared,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
    assert shared == {"medium": "Memory", "sizeLimit": "2048Mi"}
    assert [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shm"] == ["/dev/shm"]  # noqa: S108


def test_what_is_rendered_is_what_the_server_reads() -> None:
    """Its settings refuse what they do not know, and take what is there."""
    for server in ("model-server", "model-server-chat"):
        (deployment,) = (item for item in objects("whole", 1) if item["kind"] == "StatefulSet" and item["metadata"]["name"] == server)
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        env = {each["name"]: each["value"] for each in container["env"] if each["name"].startswith("MODEL_SERVER_")}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            found = ServerSettings.read()
        assert found.engine == ("vllm" if server.endswith("chat") else "llama-cpp")
        assert str(found.last_words_file) == container["terminationMessagePath"]
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
