"""The context that a model is declared with is the one that it is served with, or the update ends with the reason."""

import json
from pathlib import Path

import httpx
import pytest

from devcluster import cluster as embedded
from images import embedded as images
from infra.engine.errors import CliError
from tests import tiny_gguf
from tests.cluster.conftest import MODEL, SCRIPT, SERVER_ID, Stack

pytestmark = pytest.mark.cluster
SHORT = "short:2k"


def test_the_effective_contexts_are_in_the_outputs(stack: Stack) -> None:
    models = {model.id: model for model in stack.outputs.models}
    assert models[MODEL].effective_context == 4096
    assert models[SERVER_ID].effective_context is None


def test_trap_08_a_model_with_less_context_than_declared_fails_the_deployment_and_not_the_fleet(stack: Stack, tmp_path: Path) -> None:
    short = tiny_gguf.make(tmp_path / "short.gguf", "Hello again.", context=2048)
    image = images.models({MODEL: tiny_gguf.make(tmp_path / "tiny.gguf", SCRIPT), SHORT: short})
    embedded.push(stack.cluster, [image])
    overrides = json.loads(json.dumps(stack.overrides))
    overrides["models"].append({"name": SHORT, "size": "2Mi", "kvBytesPerToken": 1024})
    overrides["images"]["refs"]["models"] = image.reference
    stack.changed = True
    with pytest.raises(CliError) as refusal:
        stack.deployment.deploy(overrides)
    assert f"models.{SHORT}: got effective context 2048 on ollama-" in str(refusal.value)
    assert "want >= 4096; lower its contextLength" in str(refusal.value)
    # The other models go on.
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64, "temperature": 0}
    headers = {"Authorization": f"Bearer {stack.key}"}
    response = httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)
    assert response.json()["choices"][0]["message"]["content"] == SCRIPT
    # That the next deployment is an ordinary one is seen at the start of the next module.
