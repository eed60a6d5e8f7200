"""A fleet of two replicas under a load of streams: a rollout cuts none, and one that breaks the context contract ends with its reason."""

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster import cluster as embedded
from images import embedded as images
from infra.engine.errors import CliError
from tests import tiny_gguf
from tests.cluster.conftest import MODEL, SCRIPT, SERVER_ID, Stack

pytestmark = pytest.mark.cluster
DEPLOYS_FIRST = True
SLOW, SHORT = "slow:loop", "short:2k"
TOKENS = 150
"""Of one stream; a few seconds, so that streams run whenever a replica has to go."""
CLIENTS = 3


@dataclass
class Fleet:
    """The dev stack with two replicas and a slow model."""

    stack: Stack
    overrides: dict[str, Any]
    ggufs: dict[str, Path]

    def pods(self) -> dict[str, Any]:
        found = self.stack.kube.get("pods", "-n", self.stack.outputs.namespace, "-l", "app.kubernetes.io/name=ollama")["items"]
        return {item["metadata"]["name"]: item for item in found}


@pytest.fixture(scope="module")
def fleet(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    work = tmp_path_factory.mktemp("models")
    ggufs = {
        MODEL: tiny_gguf.make(work / "tiny.gguf", SCRIPT),
        SLOW: tiny_gguf.make(work / "slow.gguf", "tick tock ", loop=True, layers=6, ff=1024),
    }
    overrides = json.loads(json.dumps(stack.overrides))
    overrides["models"].append({"name": SLOW, "size": "40Mi", "kvBytesPerToken": 1024})
    overrides["fleet"] = {"replicas": 2, "promptCache": "64Mi"}
    image = images.models(ggufs)
    embedded.push(stack.cluster, [image])
    overrides["images"]["refs"]["models"] = image.reference
    stack.deployment.deploy(overrides)
    stack.changed = True
    return Fleet(stack, overrides, ggufs)


@dataclass
class Load:
    """Clients that stream without a pause. Each answer is kept, with what was wrong about it."""

    stack: Stack
    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def _one(self, client: httpx.Client) -> None:
        body = {"model": SLOW, "messages": [{"role": "user", "content": "Go."}], "max_tokens": TOKENS, "temperature": 0, "stream": True}
        text, ended, reason = "", False, ""
        try:
            with client.stream("POST", f"{self.stack.url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    self.failures.append(f"{response.status_code} {response.read().decode()}")
                    return
                for line in response.iter_lines():
                    if line.startswith(":"):
                        # A comment: the sign of life of a stream that waits.
                        continue
                    event = line.removeprefix("data: ")
                    if event == "[DONE]":
                        ended = True
                    elif event:
                        choice = json.loads(event)["choices"][0]
                        text += choice["delta"].get("content") or ""
                        reason = choice.get("finish_reason") or reason
        except (httpx.HTTPError, KeyError) as error:
            self.failures.append(f"{error!r} after {len(text)} characters")
            return
        self.answers.append(text)
        if not ended or reason != "length":
            self.failures.append(f"cut after {len(text)} characters (finish_reason {reason!r}, [DONE] {ended})")

    def _run(self) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {self.stack.key}"}, timeout=120, trust_env=False) as client:
            while not self.stop.is_set():
                self._one(client)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()


def test_trap_18_and_30_a_rolling_update_under_streaming_load_cuts_no_stream(fleet: Fleet) -> None:
    before = fleet.pods()
    with Load(fleet.stack) as load:
        while len(load.answers) < CLIENTS:
            assert not load.failures
            time.sleep(0.2)
        changed = json.loads(json.dumps(fleet.overrides))
        changed["fleet"]["maxQueue"] = 17
        fleet.stack.deployment.deploy(changed)
        after = fleet.pods()
    assert load.failures == []
    assert len(load.answers) > 2 * CLIENTS
    # The script is "tick tock " for ever, so an answer with a hole or of another length would differ.
    assert {len(answer.split()) for answer in load.answers} == {TOKENS}
    assert {answer.strip() for answer in load.answers} == {" ".join(["tick", "tock"] * (TOKENS // 2))}
    # `up` has returned, and the last pod of the rollout is already there and ready.
    assert before.keys() == after.keys() == {"ollama-0", "ollama-1"}
    for name, pod in after.items():
        assert pod["metadata"]["uid"] != before[name]["metadata"]["uid"]
        assert {"name": "OLLAMA_MAX_QUEUE", "value": "17"} in pod["spec"]["containers"][0]["env"]
        assert all(status["ready"] for status in pod["status"]["containerStatuses"])


def test_the_effective_contexts_are_in_the_outputs(fleet: Fleet) -> None:
    models = {model.id: model for model in fleet.stack.deployment.outputs().models}
    assert {name: models[name].effective_context for name in (MODEL, SLOW)} == {MODEL: 4096, SLOW: 4096}
    assert models[SERVER_ID].effective_context is None


def test_trap_08_a_model_with_less_context_than_declared_fails_the_deployment_and_not_the_fleet(fleet: Fleet, tmp_path: Path) -> None:
    short = tiny_gguf.make(tmp_path / "short.gguf", "Hello again.", context=2048)
    image = images.models({**fleet.ggufs, SHORT: short})
    embedded.push(fleet.stack.cluster, [image])
    overrides = json.loads(json.dumps(fleet.overrides))
    overrides["models"].append({"name": SHORT, "size": "2Mi", "kvBytesPerToken": 1024})
    overrides["images"]["refs"]["models"] = image.reference
    with pytest.raises(CliError) as refusal:
        fleet.stack.deployment.deploy(overrides)
    assert f"models.{SHORT}: got effective context 2048 on ollama-" in str(refusal.value)
    assert "want >= 4096; lower its contextLength" in str(refusal.value)
    # The other replica and the other models go on.
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64, "temperature": 0}
    headers = {"Authorization": f"Bearer {fleet.stack.key}"}
    response = httpx.post(f"{fleet.stack.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert response.json()["choices"][0]["message"]["content"] == SCRIPT
    # That the next deployment is an ordinary one is seen at the start of the next module.
