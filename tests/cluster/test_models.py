"""Models of the running fleet come, are refused and go, and no replica restarts for it.

The context that a model is declared with is the one that it is served with, or the update ends with the reason.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster import cluster as embedded
from images import embedded as images
from infra.engine.errors import CliError
from tests import tiny_gguf
from tests.cluster.conftest import MODEL, SCRIPT, SERVER_ID, Stack
from tests.cluster.kube import eventually
from tests.service import origins

pytestmark = pytest.mark.cluster
DEPLOYS_FIRST = True
ADDED, ADDED_SCRIPT = "added:1", "This one came later."
SEEDED, SEEDED_SCRIPT = "seeded:1", "This one came with the image."
SHORT = "short:2k"


@pytest.fixture(scope="module")
def origin(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[origins.Origin]:
    content = tiny_gguf.make(tmp_path_factory.mktemp("origin") / "m.gguf", ADDED_SCRIPT).read_bytes()
    with origins.serving(content, str(stack.cluster.host_address)) as found:
        yield found


def declared(origin: origins.Origin, digest: str = "") -> dict[str, Any]:
    found = digest or f"sha256:{hashlib.sha256(origin.content).hexdigest()}"
    return {"name": ADDED, "size": "2Mi", "kvBytesPerToken": 1024, "source": origin.url, "digest": found, "contextLength": 4096}


def with_models(stack: Stack, *more: dict[str, Any]) -> dict[str, Any]:
    return {**stack.overrides, "models": [*stack.overrides["models"], *more]}


def with_image(stack: Stack, ggufs: dict[str, Path], name: str, *more: dict[str, Any]) -> dict[str, Any]:
    """Also a model of that name, which comes with another image `models`."""
    image = images.models(ggufs)
    embedded.push(stack.cluster, [image])
    found = with_models(stack, *more, {"name": name, "size": "2Mi", "kvBytesPerToken": 1024})
    return found | {"images": {**found["images"], "refs": {**found["images"]["refs"], "models": image.reference}}}


def said(stack: Stack, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64, "temperature": 0}
    headers = {"Authorization": f"Bearer {stack.key}"}
    response = httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    return response.json()["choices"][0]["message"]["content"] if response.status_code == 200 else response.text


def replicas(stack: Stack) -> dict[str, tuple[str, int]]:
    """UID and restarts of each container together."""
    items = stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", "app.kubernetes.io/name=ollama")["items"]
    return {
        item["metadata"]["uid"]: (item["metadata"]["name"], sum(each["restartCount"] for each in item["status"]["containerStatuses"]))
        for item in items
    }


def shown(stack: Stack) -> str:
    return stack.kube.exec(stack.outputs.namespace, "ollama-0", "ollama", "list").stdout


def in_sidecar(stack: Stack, *command: str) -> str:
    return stack.kube.run("exec", "-n", stack.outputs.namespace, "ollama-0", "-c", "model-sync", "--", *command)


def test_the_effective_contexts_are_in_the_outputs(stack: Stack) -> None:
    models = {model.id: model for model in stack.outputs.models}
    assert models[MODEL].effective_context == 4096
    assert models[SERVER_ID].effective_context is None


def test_trap_08_a_model_with_less_context_than_declared_fails_the_deployment_and_not_the_fleet(stack: Stack, tmp_path: Path) -> None:
    short = tiny_gguf.make(tmp_path / "short.gguf", "Hello again.", context=2048)
    overrides = with_image(stack, {MODEL: tiny_gguf.make(tmp_path / "tiny.gguf", SCRIPT), SHORT: short}, SHORT)
    # Every other deployment of this file sets that back, and is an ordinary one.
    stack.changed = True
    with pytest.raises(CliError) as refusal:
        stack.deployment.deploy(overrides)
    assert f"models.{SHORT}: got effective context 2048 on ollama-" in str(refusal.value)
    assert "want >= 4096; lower its contextLength" in str(refusal.value)
    # The other models go on.
    assert said(stack, MODEL) == SCRIPT


def test_a_model_is_added_refused_and_removed_while_the_fleet_serves(stack: Stack, origin: origins.Origin, tmp_path: Path) -> None:
    before = replicas(stack)
    blob = f"sha256-{hashlib.sha256(origin.content).hexdigest()}"

    # A source that lies: the Job fails with its reason, and the fleet goes on.
    with pytest.raises(CliError) as refusal:
        stack.deployment.deploy(with_models(stack, declared(origin, "sha256:" + "0" * 64)))
    assert "Job" in str(refusal.value)
    assert f"models.{ADDED}: {origin.url}: got content sha256:" in reasons(stack)
    assert ADDED not in shown(stack)
    assert said(stack, MODEL) == SCRIPT

    # The honest one, and one that comes with another image: both answer, nobody was restarted, and it was fetched once for all.
    origin.sent = 0
    ggufs = {MODEL: tiny_gguf.make(tmp_path / "m.gguf", SCRIPT), SEEDED: tiny_gguf.make(tmp_path / "s.gguf", SEEDED_SCRIPT)}
    stack.deployment.deploy(with_image(stack, ggufs, SEEDED, declared(origin)))
    eventually(lambda: said(stack, ADDED), lambda text: text == ADDED_SCRIPT, 60, "an answer of the added model")
    eventually(lambda: said(stack, SEEDED), lambda text: text == SEEDED_SCRIPT, 60, "an answer of the model of the image")
    assert origin.sent == len(origin.content)
    assert replicas(stack) == before
    assert {each["name"] for each in json.loads(in_sidecar(stack, "cat", "/models/catalog.json"))["models"]} == {MODEL, ADDED, SEEDED}

    # Removed: not shown, and its space is free in both tiers.
    stack.deployment.deploy(stack.overrides)
    stack.changed = False
    eventually(lambda: shown(stack), lambda text: ADDED not in text and SEEDED not in text, 60, "the removed models are hidden")
    assert blob not in in_sidecar(stack, "ls", "/shared/blobs")
    eventually(lambda: blob in in_sidecar(stack, "ls", "/models/blobs"), lambda there: not there, 120, "space of the removed model")
    assert replicas(stack) == before
    assert said(stack, MODEL) == SCRIPT


def reasons(stack: Stack) -> str:
    """What the pods of writers said at their end."""
    items = stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", "app.kubernetes.io/name=model-sync")["items"]
    ends = [status["state"].get("terminated", {}) for item in items for status in item["status"].get("containerStatuses", [])]
    return "\n".join(end.get("message", "") for end in ends)


def test_a_replica_cannot_write_the_store_that_it_serves(stack: Stack) -> None:
    done = stack.kube.exec(stack.outputs.namespace, "ollama-0", "touch", "/models/blobs/x")
    assert "Read-only file system" in done.stderr
    with pytest.raises(AssertionError, match="Read-only file system"):
        in_sidecar(stack, "touch", "/shared/x")
