"""Agents at work while replicas are killed, and while everything is rolled out again and again: no turn fails. 40 minutes.

Clients are OpenAI's package with its own retries. What breaks off before its first byte is no concern of theirs; a stream that breaks off
later ends with a typed event, and its agent asks again, as agents do.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessageParam

from devcluster import cluster as embedded
from images import embedded as images
from model_sync import gguf
from tests import tiny_gguf
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.kube import eventually
from tests.proofs.records import Proof
from tests.service import names
from tests.service.agents import BROKEN_OFF, AtWork
from tests.service.conftest import KEY, start_api_server, start_model_server
from tests.service.processes import Service, free_port

PROOF = Proof("agent-kills", guards=("api_server", "model_server", "ollama_agent", "components/api_server.py", "components/ollama.py"))
LOOP = "loop:scripted"
REPLICAS, AGENTS, PAUSE_S, LASTS_S, ROLLOUTS = 4, 4, 5.0, 300.0, 20
TOKENS = 24
"""Of one answer. All agents ask without a pause, so there are answers at work whenever a replica dies; and an answer is short beside
PAUSE_S, since a client asks three times, and no retry helps an answer that outlasts its servers."""
ANSWER = " ".join(["tick", "tock"] * (TOKENS // 2))


class Agents(AtWork):
    """They hold conversations, half of them by streams."""

    def __init__(self, url: str, key: str, model: str) -> None:
        super().__init__(url, key, AGENTS)
        self._model = model

    def _answer(self, messages: list[ChatCompletionMessageParam], *, stream: bool) -> str:
        given: dict[str, Any] = {"model": self._model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
        return self.streamed(given) if stream else self.client.chat.completions.create(**given).choices[0].message.content or ""

    def work(self, number: int) -> None:
        stream, turn = bool(number % 2), 0
        start: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": f"You are agent {number}."},
            {"role": "user", "content": "Go."},
        ]
        messages = start
        while not self.ended.is_set():
            try:
                answer = self._answer(messages, stream=stream).strip()
            except Exception as error:
                self.failures.append(f"agent {number}, turn {turn}: {error!r}")
                continue
            if answer != ANSWER:
                self.failures.append(f"agent {number}, turn {turn}: {answer[-40:]!r} of {len(answer)} characters")
            turn += 1
            self.counts["turns"] += 1
            # Six turns, and the conversation begins anew, as after a task.
            messages = (
                start if len(messages) > 12 else [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "On."}]
            )


class Replicas:
    """Model servers of one model, each at an address of its own. One that dies is started again at once, as a kubelet does."""

    def __init__(self, work: Path) -> None:
        self.port, self._work = free_port(), work
        self._store = work / "models"
        gguf.add(LOOP, tiny_gguf.make(work / "loop.gguf", "tick tock ", loop=True, context=8192), self._store)
        self.hosts = [f"127.0.0.{number + 1}" for number in range(REPLICAS)]
        self._running: dict[str, tuple[ExitStack, Service]] = {}

    def start(self, host: str, ready: str = "") -> None:
        stack, work = ExitStack(), self._work / host
        work.mkdir(exist_ok=True)
        env = {"HOST": host, "PORT": str(self.port), "CONTEXT_LENGTH": "8192", "PARALLEL": "2", "MAX_QUEUE": "16"}
        self._running[host] = stack, start_model_server(stack, self._store, work, LOOP, ready, None, **env)

    def kill(self, host: str) -> None:
        stack, service = self._running.pop(host)
        service.process.kill()
        stack.close()

    def close(self) -> None:
        for host in list(self._running):
            self.kill(host)


@contextmanager
def gateway(replicas: Replicas, work: Path) -> Iterator[Service]:
    with ExitStack() as stack:
        stack.callback(replicas.close)
        for host in replicas.hosts:
            replicas.start(host, "/ready")
        url = f"http://{names.FLEET}:{replicas.port}"
        routes: dict[str, dict[str, object]] = {LOOP: {"url": url, "max_in_flight": 18, "slots": 2, "cached_tokens": 8192}}
        environment = names.Name(work, *replicas.hosts).environment
        yield start_api_server(stack, work, routes, "/ready", environment, 0, QUEUE_S="60", HOLD_S="60")


def kills(kill: Callable[[], object]) -> int:
    """Kill one each PAUSE_S seconds, for LASTS_S seconds."""
    count, began = 0, time.monotonic()
    while time.monotonic() - began < LASTS_S:
        kill()
        count += 1
        time.sleep(max(0.0, began + count * PAUSE_S - time.monotonic()))
    return count


@pytest.mark.timeout(900)
def test_a_random_replica_is_killed_every_five_seconds(tmp_path: Path, figures: dict[str, Any]) -> None:
    replicas, chance = Replicas(tmp_path), random.Random(16)  # noqa: S311 (the same victims each time)

    def kill() -> None:
        replicas.kill(host := chance.choice(replicas.hosts))
        replicas.start(host)

    with gateway(replicas, tmp_path) as api, Agents(api.url, KEY, LOOP) as agents:
        killed = kills(kill)
        assert api.process.poll() is None
    figures["processes"] = {"kills": killed, "failed": len(agents.failures), **agents.counts}
    assert agents.failures == []
    assert agents.counts["turns"] > killed
    assert killed >= LASTS_S / PAUSE_S * 0.8


@pytest.fixture(scope="module")
def fleet(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, dict[str, Any]]:
    """Three replicas and two gateways, with a model whose answers take a while."""
    work = tmp_path_factory.mktemp("models")
    files = {
        MODEL: tiny_gguf.make(work / "tiny.gguf", SCRIPT),
        LOOP: tiny_gguf.make(work / "loop.gguf", "tick tock ", loop=True),
    }
    overrides = json.loads(json.dumps(stack.overrides))
    overrides["models"].append({"name": LOOP, "size": "40Mi", "kvBytesPerToken": 1024})
    overrides["fleet"] = {"replicas": 3, "promptCache": "64Mi", "resources": {"cpu": "100m", "memory": "512Mi"}}
    overrides["apiServer"] = {"replicas": 2, "holdSeconds": 60}
    image = images.models(files)
    embedded.push(stack.cluster, [image])
    overrides["images"]["refs"]["models"] = image.reference
    stack.deployment.deploy(overrides)
    return stack, overrides


def ready(stack: Stack) -> list[str]:
    """Replicas that take requests."""
    pods = stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", "app.kubernetes.io/name=ollama")["items"]
    return [
        pod["metadata"]["name"]
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        and all(each["ready"] for each in pod["status"].get("containerStatuses") or [{"ready": False}])
    ]


@pytest.mark.timeout(900)
def test_a_random_pod_is_killed_every_five_seconds(fleet: tuple[Stack, dict[str, Any]], figures: dict[str, Any]) -> None:
    stack, _ = fleet
    chance = random.Random(16)  # noqa: S311 (the same victims each time)
    killed: list[str] = []

    def kill() -> None:
        # The last one that answers is left: with none, it is the start of a pod that is measured.
        if len(there := ready(stack)) > 1:
            killed.append(chance.choice(there))
            stack.kube.run("delete", "pod", killed[-1], "-n", stack.outputs.namespace, "--grace-period=0", "--force", "--wait=false")

    with Agents(stack.url, stack.key, LOOP) as agents:
        kills(kill)
    figures["pods"] = {"kills": len(killed), "failed": len(agents.failures), **agents.counts}
    assert agents.failures == []
    assert len(killed) > 10
    eventually(lambda: ready(stack), lambda names: len(names) == 3, 180, "all replicas again")


@pytest.mark.timeout(3600)
def test_gateways_and_servers_are_rolled_out_twenty_times(fleet: tuple[Stack, dict[str, Any]], figures: dict[str, Any]) -> None:
    stack, overrides = fleet
    with Agents(stack.url, stack.key, LOOP) as agents:
        for number in range(ROLLOUTS):
            changed = json.loads(json.dumps(overrides))
            # Gateways and servers by turns; each is another pod template than the one before.
            changed["fleet"]["maxQueue"] = 17 + number // 2
            changed["apiServer"]["queueSeconds"] = 61 + (number + 1) // 2
            stack.deployment.deploy(changed)
    figures["rollouts"] = {"rollouts": ROLLOUTS, "failed": len(agents.failures), **agents.counts}
    assert agents.failures == []
    # Here nothing dies: what is to go ends its answers first.
    assert not agents.counts[BROKEN_OFF]
    assert agents.counts["turns"] > ROLLOUTS
