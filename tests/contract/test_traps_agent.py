"""Traps of running Ollama in Kubernetes, on what is rendered for both stacks. Those that need a running server are tests/service/test_ollama_agent.py."""

from pathlib import Path
from typing import Any

import pytest

from components.contract import DNS_CLIENTS, EDGES, OLLAMA
from infra.analysis.policy import rules
from infra.program.settings import parse
from infra.program.settings.section import quantity
from ollama_agent import engines
from tests.contract.test_laws import documents
from tests.unit.test_settings import document, refusal

STACKS = pytest.mark.parametrize("stack", ["dev", "prod"])
ROOT = Path(__file__).resolve().parents[2]


def servers(stack: str) -> dict[str, Any]:
    return next(item["spec"] for item in documents(stack) if item["kind"] == "StatefulSet" and item["metadata"]["name"] == "ollama")


def container(stack: str) -> dict[str, Any]:
    return next(each for each in servers(stack)["template"]["spec"]["containers"] if each["name"] == "ollama")


def environment(stack: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(stack)["env"]}


@STACKS
def test_trap_08_the_context_is_always_said(stack: str) -> None:
    assert int(environment(stack)["OLLAMA_CONTEXT_LENGTH"]) == parse(document(stack)).fleet.context_length


def test_trap_08_agents_get_enough_of_it() -> None:
    settings = parse(document("prod"))
    assert settings.fleet.min_context == 16384
    probe = next(
        item
        for item in documents("prod")
        if item["kind"] == "Job" and item["metadata"]["labels"]["app.kubernetes.io/name"] == "context-probe"
    )
    values = {entry["name"]: entry["value"] for entry in probe["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert values["OLLAMA_PROBE_MIN_CONTEXT"] == "16384"


@pytest.mark.parametrize(
    "name", ["qwen3.5:4b", "qwen3-vl:8b", "qwen3-next:80b", "llama3.2-vision:11b", "lfm2:24b", "nemotron-h:8b", "team/qwen3.6:35b"]
)
def test_trap_12_parallel_requests_to_families_that_have_none_are_refused(name: str) -> None:
    model = {"name": name, "size": "100M", "kvBytesPerToken": 1024}
    assert f"fleet.numParallel: got 2, want 1 with model {name}" in refusal(models=[model], fleet={"numParallel": 2})


@pytest.mark.parametrize("name", ["qwen3-coder:30b", "qwen3:8b", "llama3.2:3b", "nemotron-mini:4b"])
def test_trap_12_other_families_are_let_through(name: str) -> None:
    model = {"name": name, "size": "100M", "kvBytesPerToken": 1024}
    config = document()
    config["models"] = [model]
    config["modelServers"][0]["model"] = name
    config["fleet"] |= {"numParallel": 2}
    parse(config)


@STACKS
def test_trap_13_there_is_room_for_every_model(stack: str) -> None:
    assert int(environment(stack).get("OLLAMA_MAX_LOADED_MODELS", "32")) >= len(parse(document(stack)).models)


@STACKS
def test_trap_14_models_stay_loaded(stack: str) -> None:
    assert environment(stack)["OLLAMA_KEEP_ALIVE"] == "-1"


@STACKS
def test_trap_15_the_queue_is_short(stack: str) -> None:
    assert int(environment(stack)["OLLAMA_MAX_QUEUE"]) <= 16


@STACKS
def test_trap_17_no_probe_of_the_kubelet_kills_a_server_that_loads(stack: str) -> None:
    found = container(stack)
    assert found["startupProbe"]["httpGet"] == {"path": "/", "port": 11434}, "what Ollama answers while it loads"
    assert found["startupProbe"]["failureThreshold"] * found["startupProbe"]["periodSeconds"] >= 300
    # By what has answered before, and does not any more: test_ollama_agent.py has a load that hangs, and is no reason.
    assert found["livenessProbe"]["httpGet"] == {"path": "/alive", "port": 9466}
    assert found["livenessProbe"]["failureThreshold"] * found["livenessProbe"]["periodSeconds"] >= 60
    assert engines.OLLAMA_SILENCE_S >= 300
    assert environment(stack)["OLLAMA_LOAD_TIMEOUT"] == "1800s"
    assert not any("/ready" in str(found[name]) for name in ("startupProbe", "livenessProbe"))


@STACKS
def test_trap_18_kubernetes_waits_longer_than_the_longest_drain(stack: str) -> None:
    pod = servers(stack)["template"]["spec"]
    agent = next(each for each in pod["initContainers"] if each["name"] == "ollama-agent")
    drain = next(float(entry["value"]) for entry in agent["env"] if entry["name"] == "OLLAMA_AGENT_DRAIN_S")
    assert pod["terminationGracePeriodSeconds"] >= drain + 30
    assert container(stack)["lifecycle"]["preStop"]["httpGet"]["path"] == "/drain"


def test_trap_21_a_pod_without_a_gpu_sees_none() -> None:
    assert environment("dev")["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment("prod")
    assert container("prod")["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_trap_22_shares_without_isolation_are_refused_in_production() -> None:
    gpu: dict[str, Any] = {"sharing": {"strategy": "time-slicing", "replicas": 2}}
    assert "acknowledgeNoIsolation: got false, want true for time-slicing, which limits no pod's memory" in refusal(stack="prod", gpu=gpu)
    gpu["sharing"]["acknowledgeNoIsolation"] = True
    assert "gpu.sharing.strategy: got time-slicing, want none, mps or mig" in refusal(stack="prod", gpu=gpu)


@STACKS
def test_trap_23_a_server_reads_its_models_from_its_own_node(stack: str) -> None:
    (claim,) = servers(stack)["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "local-nvme"
    mounts = {mount["name"] for mount in container(stack)["volumeMounts"]}
    assert claim["metadata"]["name"] in mounts
    assert "shared" not in mounts


@STACKS
def test_trap_25_old_prompts_have_a_bound_that_the_pod_can_hold(stack: str) -> None:
    settings = parse(document(stack))
    kept = int(environment(stack)["LLAMA_ARG_CACHE_RAM"]) * 2**20
    assert kept == quantity(settings.fleet.prompt_cache)
    assert quantity(container(stack)["resources"]["limits"]["memory"]) > kept * len(settings.models)


@STACKS
def test_trap_28_there_is_no_cloud_and_no_way_to_it(stack: str) -> None:
    assert environment(stack)["OLLAMA_NO_CLOUD"] == "1"
    assert OLLAMA not in DNS_CLIENTS
    assert not [edge for edge in EDGES if edge.source == OLLAMA]
    policy = next(item for item in documents(stack) if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] == OLLAMA)
    assert "Egress" in policy["spec"]["policyTypes"]
    assert not policy["spec"].get("egress")


@STACKS
def test_trap_29_replicas_start_together_and_keep_their_volumes_when_scaled_in(stack: str) -> None:
    assert servers(stack)["podManagementPolicy"] == "Parallel"
    assert servers(stack)["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Retain"


@STACKS
def test_trap_30_nothing_waits_for_endpoints_that_wait_for_it(stack: str) -> None:
    headless = [item for item in documents(stack) if item["kind"] == "Service" and item["spec"].get("clusterIP") == "None"]
    assert {"ollama", "ollama-replicas"} <= {item["metadata"]["name"] for item in headless}
    assert all(item["metadata"]["annotations"]["pulumi.com/skipAwait"] == "true" for item in headless)
    item = next(item for item in documents(stack) if item["kind"] == "StatefulSet" and item["metadata"]["name"] == "ollama")
    assert item["metadata"]["annotations"]["pulumi.com/waitFor"] == "jsonpath={.metadata.uid}"
    assert rules.stateful_sets_have_their_service(documents(stack)) == []


def test_every_trap_of_the_page_has_its_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    rows = [line for line in (ROOT / "docs" / "traps.md").read_text().splitlines() if line.startswith("| O")]
    assert rows
    for row in rows:
        for name in [part.rstrip("…`_ ;,:.|") for part in row.split("`") if part.startswith("test_trap_")]:
            assert f"def {name}" in tests, name
