"""Agents at a fleet that has the memory for two, before two API servers: they agree, a third one waits for its turn, and a fleet that may
grow gets a server for it. 8 minutes."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_server.pauses import PAUSE_S
from devcluster import cluster as embedded
from images import embedded as images
from tests import tiny_gguf
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.kube import eventually
from tests.cluster.test_scale_to_zero import replicas
from tests.proofs.records import Proof

PROOF = Proof("agents", guards=("api_server", "components", "devcluster", "infra/program", "ollama_agent", "Pulumi.dev.yaml"))
SYSTEM = "A rule of the house. " * 500
"""About 10,000 bytes, which are as many tokens of the scripted model."""


@pytest.fixture(scope="module")
def fleet(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Two replicas with a slot each and next to no memory beside it, and two API servers."""
    return small(stack, tmp_path_factory.mktemp("models"))


def small(stack: Stack, work: Path, **fleet: Any) -> Stack:
    overrides = json.loads(json.dumps(stack.overrides))
    overrides["fleet"] = {"replicas": 2, "contextLength": 16384, "promptCache": "1Mi", **fleet}
    overrides["apiServer"] = {"replicas": 2}
    image = images.models({MODEL: tiny_gguf.make(work / "tiny.gguf", SCRIPT, context=32_768)})
    embedded.push(stack.cluster, [image])
    overrides["images"]["refs"]["models"] = image.reference
    stack.changed = True
    stack.deployment.deploy(overrides)
    return stack


def metrics(fleet: Stack) -> dict[str, Counter[tuple[str, str]]]:
    """Of each pod of the API server, by name and the label `reason`."""
    found: dict[str, Counter[tuple[str, str]]] = {}
    namespace = fleet.outputs.namespace
    read = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
    for pod in fleet.kube.get("pods", "-n", namespace, "-l", "app.kubernetes.io/name=api-server")["items"]:
        text = fleet.kube.exec(namespace, pod["metadata"]["name"], "python3", "-c", read).stdout
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        found[pod["metadata"]["name"]] = Counter()
        for sample in samples:
            found[pod["metadata"]["name"]][sample.name, sample.labels.get("reason", "")] += int(sample.value)
    return found


def agree(fleet: Stack) -> None:
    def said() -> list[tuple[float, float]]:
        return [(each["api_server_agrees", ""], each["api_server_gateways", ""]) for each in metrics(fleet).values()]

    eventually(said, lambda found: found == [(1, 2), (1, 2)], 60, "two API servers that agree")


def turn(fleet: Stack, agent: str, number: int) -> httpx.Response:
    """On a connection of its own, so that either API server may get it. Whoever is told to come again does so, as agents do."""
    history = [{"role": "assistant", "content": SCRIPT}, {"role": "user", "content": "And again."}] * number
    messages = [{"role": "system", "content": f"{agent} {SYSTEM}"}, {"role": "user", "content": "Say it."}, *history]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": 16, "temperature": 0}
    while True:
        headers = {"Authorization": f"Bearer {fleet.key}"}
        response = httpx.post(f"{fleet.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
        if response.status_code != 429:
            return response
        time.sleep(1)


def test_turns_find_their_prompt_through_either_api_server_and_a_third_agent_waits_for_memory(fleet: Stack) -> None:
    agree(fleet)
    began = time.monotonic()
    assert [turn(fleet, agent, 0).status_code for agent in ("one", "two")] == [200, 200]
    # What one API server has done, the other one knows a second later.
    time.sleep(3)
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(turn, fleet, "three", 0)
        for number in range(1, 6):
            for agent in ("one", "two"):
                answer = turn(fleet, agent, number)
                assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, SCRIPT)
            time.sleep(3)
        assert not third.done()
        paused = time.monotonic()
        assert third.result(180).status_code == 200
    assert time.monotonic() - paused > PAUSE_S / 2, "the others kept their memory for as long as a tool may take"
    every = metrics(fleet)
    turns = sum(
        (Counter({reason: count for (name, reason), count in each.items() if name == "api_server_turns_total"}) for each in every.values()),
        Counter(),
    )
    assert {reason: count for reason, count in turns.items() if count} == {"new": 3, "bound": 10}, time.monotonic() - began
    assert all(each["api_server_turns_total", "bound"] for each in every.values()), "both had some of them"


def test_a_new_api_server_agrees_with_those_that_are_there(fleet: Stack) -> None:
    namespace = fleet.outputs.namespace
    old = set(metrics(fleet))
    fleet.kube.run("delete", "pod", sorted(old)[0], "-n", namespace, "--wait=false")
    eventually(lambda: set(metrics(fleet)) - old, bool, 90, "a new API server")
    agree(fleet)
    assert turn(fleet, "three", 1).status_code == 200


def test_the_fleet_grows_for_a_third_agent_and_shrinks_when_it_has_gone(stack: Stack, tmp_path: Path) -> None:
    """One replica has memory for two. Every turn of every agent is answered, while a replica comes and while it goes."""
    api = f"{stack.cluster.control_plane.address}/32"
    scale = {"min": 1, "idleMinutes": 1, "kubernetesCidrs": [api]}
    fleet = small(stack, tmp_path, numParallel=2, scale=scale)
    agree(fleet)
    # It was made with two, which nobody needs.
    eventually(lambda: replicas(fleet), lambda count: count == 1, 300, "one replica")
    ended, began = Event(), time.monotonic()

    def works(agent: str) -> list[int]:
        """Turn after turn, as long as the others."""
        found: list[int] = []
        while not ended.is_set():
            # After ten turns the history begins anew, within the context.
            found.append(turn(fleet, agent, len(found) % 10).status_code)
            time.sleep(2)
        return found

    with ThreadPoolExecutor(2) as pool:
        agents = [pool.submit(works, agent) for agent in ("four", "five")]
        try:
            time.sleep(5)
            assert turn(fleet, "six", 0).status_code == 200
            print(f"a replica more after {time.monotonic() - began:.0f} s")
            assert replicas(fleet) == 2
            # The third one's memory is kept for as long as a tool may take, then the replica is spare. It goes while both others work,
            # unless one of them lives there.
            time.sleep(PAUSE_S + 90)
        finally:
            ended.set()
        assert [set(each.result(120)) for each in agents] == [{200}, {200}]
    eventually(lambda: replicas(fleet), lambda count: count == 1, 300, "one replica again")
    fleet.deployment.cli.preview(expect_no_changes=True)
