"""The dev stack on a real cluster: it answers, it is closed, it changes only when it should, it comes back, it goes away."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from devcluster import cluster as embedded
from devcluster.oci import assemble
from images.embedded import runtime_config
from infra import ROOT
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError
from modelfleet_outputs import FleetOutputs
from tests.cluster.conftest import MODEL, SCRIPT, SERVER_ID, Stack
from tests.cluster.kube import descendants, eventually

pytestmark = pytest.mark.cluster
BODY = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64, "temperature": 0}


def ask(stack: Stack, model: str, **fields: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {stack.key}"}
    return httpx.post(f"{stack.url}/v1/chat/completions", json={**BODY, "model": model, **fields}, headers=headers, timeout=60)


@pytest.mark.parametrize("model", [MODEL, SERVER_ID])
def test_a_chat_is_answered_by_ollama_and_by_the_model_server(stack: Stack, model: str) -> None:
    response = ask(stack, model)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == SCRIPT


@pytest.mark.parametrize("model", [MODEL, SERVER_ID])
def test_a_streamed_chat_ends_with_done(stack: Stack, model: str) -> None:
    events = [line.removeprefix("data: ") for line in ask(stack, model, stream=True).text.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert "".join(deltas) == SCRIPT


def test_a_request_without_a_key_is_refused(stack: Stack) -> None:
    response = httpx.get(f"{stack.url}/v1/models", timeout=10)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_the_page_is_in_the_image_and_counts_agents_as_the_outputs_do(stack: Stack) -> None:
    page = httpx.get(f"{stack.url}/", headers={"Accept": "text/html"}, timeout=10)
    assert "<h1>modelfleet</h1>" in page.text
    assert httpx.get(f"{stack.url}/page/app.js", timeout=10).status_code == 200
    said = {model.id: model.warm_conversations for model in stack.outputs.models}

    def shown() -> dict[str, int | None]:
        fleet = httpx.get(f"{stack.url}/fleet", headers={"Authorization": f"Bearer {stack.key}"}, timeout=10).json()
        return {model["id"]: model["warm_conversations"] for model in fleet["models"]}

    eventually(shown, lambda found: found == said, 60, "the agents that stay warm")


def test_an_exact_answer_is_kept_on_the_cache_server(stack: Stack) -> None:
    headers = {"Authorization": f"Bearer {stack.key}", "X-Cache": "exact"}
    body = {**BODY, "model": SERVER_ID, "seed": 7}
    outcomes = [httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=60).headers["x-cache"] for _ in range(2)]
    assert outcomes == ["miss", "hit"]


def test_the_outputs_are_what_consumers_read(stack: Stack) -> None:
    assert [model.id for model in stack.outputs.models] == [MODEL, SERVER_ID]
    assert FleetOutputs.model_validate_json(stack.outputs.model_dump_json()) == stack.outputs


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    stack.deployment.cli.preview(expect_no_changes=True)


def test_a_killed_ollama_pod_comes_back_and_serves(stack: Stack) -> None:
    namespace = stack.outputs.namespace
    before = stack.kube.get("pod", "ollama-0", "-n", namespace)["metadata"]["uid"]
    stack.kube.run("delete", "pod", "ollama-0", "-n", namespace, "--grace-period=0", "--force")
    eventually(lambda: ask(stack, MODEL).status_code, lambda status: status == 200, 90, "an answer after the kill")
    assert stack.kube.get("pod", "ollama-0", "-n", namespace)["metadata"]["uid"] != before


def test_a_changed_service_replaces_only_its_own_pods_and_an_update_that_was_killed_is_finished_by_the_next(stack: Stack) -> None:
    def pods() -> dict[str, str]:
        """Without those that are about to end: an API server goes when a Prometheus has read the last of its metrics."""
        items = [item["metadata"] for item in stack.kube.get("pods", "-n", stack.outputs.namespace)["items"]]
        return {item["uid"]: item["labels"]["app.kubernetes.io/name"] for item in items if "deletionTimestamp" not in item}

    before = pods()
    image = stack.images["metrics-exporter"]
    config = runtime_config("metrics-exporter")
    edited = assemble(image.name, image.layers, dataclasses.replace(config, labels={"edited": "yes"}))
    embedded.push(stack.cluster, [edited])
    overrides = json.loads(json.dumps(stack.overrides))
    overrides["images"]["refs"]["metrics-exporter"] = edited.reference
    stack.changed = True
    stack.deployment.deploy(overrides)
    after = eventually(pods, lambda now: len(now) == len(before), 60, "as many pods as before")
    assert {before[uid] for uid in before.keys() - after.keys()} == {"metrics-exporter"}
    assert {after[uid] for uid in after.keys() - before.keys()} == {"metrics-exporter"}
    # The update that sets it back is killed.
    cli = stack.deployment.cli
    stack.deployment.configure(stack.overrides)
    environment = cli.environment()
    pulumi = shutil.which("pulumi", path=environment["PATH"])
    assert pulumi is not None
    argv = [pulumi, "up", "--yes", "--skip-preview", "--non-interactive", "--stack", "dev", "--config-file", str(cli.config_file)]
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        seen = next((line for line in process.stdout if "monitoring-fleet updating" in line), "")
        # The language host has a process group of its own and would outlive Pulumi.
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert seen
    stack.deployment.deploy(stack.overrides)
    stack.changed = False
    cli.preview(expect_no_changes=True)
    assert ask(stack, MODEL).status_code == 200


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("fleet", {"replicas": 0}, "modelfleet:fleet.replicas: got 0, want greater than or equal to 1"),
        ("fleet", {"replicsa": 2}, "modelfleet:fleet.replicsa: got an unknown key, want one of"),
        ("images", {"refs": {}}, "modelfleet:images.refs.ollama: got nothing, want a reference"),
        ("cluster", {"context": "elsewhere"}, "modelfleet:cluster.context: got 'elsewhere', want a context of the kubeconfig"),
        ("cluster", {"identity": "00000000-0000-0000-0000-000000000000"}, "which this stack was made for"),
        ("nonsense", {"a": 1}, "modelfleet:nonsense: got an unknown key"),
    ],
)
def test_bad_input_is_refused_before_anything_is_created(
    stack: Stack, tmp_path: Path, section: str, values: dict[str, object], message: str
) -> None:
    cli = PulumiCli(stack="dev", state_dir=tmp_path, env={"KUBECONFIG": stack.deployment.kubeconfig})
    cli.ensure_stack()
    config = stack.deployment.cli.read_config()
    config |= {"modelfleet:apiKeys": json.dumps(["a-key-of-sufficient-length"]), "modelfleet:cachePassword": "sufficientlylong1"}
    config[f"modelfleet:{section}"] = {**config.get(f"modelfleet:{section}", {}), **values}
    cli.write_config(config)
    with pytest.raises(CliError) as refusal:
        cli.up()
    assert message in str(refusal.value)
    assert "Traceback" not in str(refusal.value)
    assert _resources(cli) <= {"pulumi:pulumi:Stack"}


def test_missing_secrets_are_named(stack: Stack, tmp_path: Path) -> None:
    cli = PulumiCli(stack="dev", state_dir=tmp_path, env={"KUBECONFIG": stack.deployment.kubeconfig})
    cli.ensure_stack()
    config = {name: value for name, value in stack.deployment.cli.read_config().items() if "secure" not in value}
    cli.write_config(config)
    with pytest.raises(CliError) as refusal:
        cli.up()
    for name in ("apiKeys", "cachePassword"):
        assert f"modelfleet:{name}: got nothing, want" in str(refusal.value)
    assert _resources(cli) <= {"pulumi:pulumi:Stack"}


def test_an_unreachable_cluster_is_refused(stack: Stack, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    address = stack.cluster.api_url
    kubeconfig.write_text(stack.cluster.kubeconfig.read_text().replace(address, address.replace(":6443", ":6499")))
    cli = PulumiCli(stack="dev", state_dir=tmp_path / "state", env={"KUBECONFIG": str(kubeconfig)})
    cli.ensure_stack()
    config = stack.deployment.cli.read_config()
    config |= {"modelfleet:apiKeys": json.dumps(["a-key-of-sufficient-length"]), "modelfleet:cachePassword": "sufficientlylong1"}
    cli.write_config(config)
    with pytest.raises(CliError, match="got no answer from cluster"):
        cli.up()
    assert _resources(cli) <= {"pulumi:pulumi:Stack"}


def test_no_secret_is_in_the_state_file_or_the_configuration(stack: Stack) -> None:
    for path in stack.deployment.state_dir.rglob("*"):
        if path.is_file() and path != stack.deployment.key_file:
            assert stack.key.encode() not in path.read_bytes(), path


def _resources(cli: PulumiCli) -> set[str]:
    exported = json.loads(cli.run("stack", "export"))
    return {resource["type"] for resource in exported["deployment"].get("resources") or []}
