"""What `cache.maxSize` gives the pods of model servers."""

import json
from typing import Any

import pytest

from components.cache_tier import KEPT_S
from infra.analysis.policy import rules
from infra.program import stack
from infra.program.settings import parse
from tests.component.harness import render, rendered
from tests.component.test_gpu_modes import H100, TREE, VLLM, one
from tests.unit.test_settings import FLEET, REFS, document
from tests.unit.test_settings_fuzz import GOOD, with_config

SIZE = 50 * 2**30


def objects(**cache: Any) -> list[dict[str, Any]]:
    config = document(FLEET) | {"images": {"refs": REFS}, "gpu": H100}
    config["governance"] |= {"production": False, "storage": "10Ti", "claims": 60}
    config["models"].append(TREE)
    config["modelServers"].append(VLLM | {"gpus": 1, "promptCache": "8Gi"})
    config["cache"] |= cache
    settings = parse(rendered(config))
    found: list[dict[str, Any]] = []

    def build() -> None:
        for resource in render(lambda: stack.build(settings)).resources:
            if "kind" in resource.inputs:
                resource.inputs["metadata"].setdefault("name", f"{resource.name}-auto")
                found.append(resource.inputs)

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **GOOD}, build, tuple(GOOD))
    return found


def server(found: list[dict[str, Any]], name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, str], dict[str, Any]]:
    """A StatefulSet, its pod, its variables, and its claims by name."""
    [item] = [each["spec"] for each in found if each["kind"] == "StatefulSet" and each["metadata"]["name"] == name]
    pod = item["template"]["spec"]
    (container,) = pod["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    return item, pod, env, {each["metadata"]["name"]: each["spec"] for each in item["volumeClaimTemplates"]}


def test_llama_cpp_keeps_its_slots_there_and_has_the_time_for_it() -> None:
    found = objects(maxSize="50Gi")
    _, pod, env, claims = server(found, "model-server")
    assert (env["MODEL_SERVER_KEPT_DIR"], env["MODEL_SERVER_KEPT_MIB"]) == ("/cache/kept", str(SIZE // 2**20))
    assert claims["cache"]["resources"] == {"requests": {"storage": "50Gi"}}
    assert claims["cache"]["storageClassName"] == claims["models"]["storageClassName"]
    assert (
        pod["terminationGracePeriodSeconds"]
        >= int(env["MODEL_SERVER_DRAIN_S"]) + KEPT_S
        == int(env["MODEL_SERVER_DRAIN_S"]) + int(env["MODEL_SERVER_KEPT_S"])
    )
    assert [each["name"] for each in pod["initContainers"]] == ["model-sync"]


def test_vllm_has_a_keeper_that_begins_before_it_and_ends_after_it() -> None:
    _, pod, env, claims = server(objects(maxSize="50Gi"), "model-server-chat")
    keeper = pod["initContainers"][-1]
    assert (keeper["name"], keeper["restartPolicy"]) == ("cache-keeper", "Always")
    bounds = {each["name"]: each["value"] for each in keeper["env"]}
    assert (bounds["KEEPER_LIMIT_MIB"], bounds["KEEPER_DIRECTORY"]) == (str(SIZE // 2**20), env["MODEL_SERVER_TIER_DIR"])
    assert bounds["KEEPER_STATE_FILE"] == env["MODEL_SERVER_KEEPER_FILE"]
    shared = {(mount["name"], mount["mountPath"]) for mount in keeper["volumeMounts"]}
    assert shared <= {(mount["name"], mount["mountPath"]) for mount in pod["containers"][0]["volumeMounts"]}, "both see the same"
    assert env["MODEL_SERVER_OFFLOAD_MIB"] == "8192"
    assert set(claims) == {"models", "cache"}
    assert keeper["image"] == pod["containers"][0]["image"]


def test_replicas_of_vllm_may_share_one_tier() -> None:
    found = objects(maxSize="50Gi", sharedCache=True)
    _, pod, _, claims = server(found, "model-server-chat")
    assert set(claims) == {"models"}
    [volume] = [each for each in pod["volumes"] if each["name"] == "cache"]
    claim = one(found, "PersistentVolumeClaim", "model-server-chat-cache")["spec"]
    assert volume["persistentVolumeClaim"]["claimName"] == "model-server-chat-cache"
    assert (claim["accessModes"], claim["storageClassName"]) == (["ReadWriteMany"], "shared-models")
    assert set(server(found, "model-server")[3]) == {"models", "cache"}, "a conversation of llama.cpp is of one process"


def test_without_a_size_there_is_no_tier() -> None:
    for name in ("model-server", "model-server-chat"):
        item, pod, env, claims = server(objects(), name)
        assert set(claims) == {"models"}
        assert "cache-keeper" not in json.dumps(pod)
        assert not [each for each in env if "KEPT" in each or "TIER" in each or "KEEPER" in each]
        assert item["replicas"]


@pytest.mark.parametrize("cache", [{"maxSize": "50Gi"}, {"maxSize": "50Gi", "sharedCache": True}])
def test_no_rule_is_broken(cache: dict[str, Any]) -> None:
    assert rules.violations(objects(**cache)) == []
