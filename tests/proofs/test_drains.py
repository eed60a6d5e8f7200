"""Each node is drained in turn while agents work: no turn fails. 10 minutes.

`kubectl drain` as a person types it: it asks for each eviction, budgets and hooks decide when, and the kubelet ends the pods.
"""

import json
import subprocess
import time
from typing import Any

import pytest

from devcluster import cluster as embedded
from images import embedded as images
from tests import tiny_gguf
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.kube import eventually
from tests.proofs.records import Proof
from tests.proofs.test_agent_kills import LOOP, Agents

PROOF = Proof("drains", guards=("api_server", "components", "devcluster", "infra/program", "ollama_agent", "Pulumi.dev.yaml"))
REPLICAS = 2
"""One a node, of each: what is on a drained node has nowhere else to go, or goes there."""


@pytest.fixture(scope="module")
def fleet(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Two replicas and two gateways, with a model whose answers take a while."""
    work = tmp_path_factory.mktemp("models")
    files = {
        MODEL: tiny_gguf.make(work / "tiny.gguf", SCRIPT),
        LOOP: tiny_gguf.make(work / "loop.gguf", "tick tock ", loop=True, layers=6, ff=1024),
    }
    overrides = json.loads(json.dumps(stack.overrides))
    overrides["models"].append({"name": LOOP, "size": "40Mi", "kvBytesPerToken": 1024})
    overrides["fleet"] = {"replicas": REPLICAS, "promptCache": "64Mi", "resources": {"cpu": "100m", "memory": "512Mi"}}
    overrides["apiServer"] = {"replicas": REPLICAS, "holdSeconds": 60}
    image = images.models(files)
    embedded.push(stack.cluster, [image])
    overrides["images"]["refs"]["models"] = image.reference
    stack.changed = True
    stack.deployment.deploy(overrides)
    return stack


def on(stack: Stack, node: str) -> list[str]:
    """Pods of the stack there that a drain has to move."""
    items = stack.kube.get("pods", "-n", stack.outputs.namespace, "--field-selector", f"spec.nodeName={node}")["items"]
    owned = [(item["metadata"]["name"], item["metadata"].get("ownerReferences", [{}])[0].get("kind")) for item in items]
    return sorted(name for name, kind in owned if kind != "DaemonSet")


def ready(stack: Stack, component: str) -> int:
    items = stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", f"app.kubernetes.io/name={component}")["items"]
    conditions = [item["status"].get("conditions", []) for item in items if not item["metadata"].get("deletionTimestamp")]
    return sum({"type": "Ready", "status": "True"}.items() <= each.items() for found in conditions for each in found)


@pytest.mark.timeout(1800)
def test_no_turn_fails_while_each_node_is_drained(fleet: Stack, figures: dict[str, Any]) -> None:
    everything = {"ollama": REPLICAS, "api-server": REPLICAS}
    seconds: dict[str, float] = {}
    with Agents(fleet.url, fleet.key, LOOP) as agents:
        for node in fleet.cluster.nodes:
            eventually(lambda: {each: ready(fleet, each) for each in everything}, lambda found: found == everything, 300, "all of them")
            assert any(name.startswith("ollama-") for name in on(fleet, node.name)), "a drain moves nothing that answers"
            before, began = agents.counts["turns"], time.monotonic()
            try:
                fleet.kube.run("cordon", node.name)
                drain(fleet, node.name)
                seconds[node.name] = round(time.monotonic() - began, 1)
                assert on(fleet, node.name) == []
                turns = agents.counts["turns"]
                eventually(lambda: agents.counts["turns"], lambda count, least=turns: count > least + 8, 120, "turns without the node")
            finally:
                fleet.kube.run("uncordon", node.name)
            assert agents.counts["turns"] > before
    figures["drained after, s"] = seconds
    figures["turns"] = {"failed": len(agents.failures), **agents.counts}
    assert agents.failures == []
    assert not agents.counts["streams that were asked for again"], "what goes ends its answers first"


def drain(fleet: Stack, node: str) -> None:
    """Longer than a reader's other questions: a replica waits for its last answers."""
    argv = [
        str(fleet.kube.kubectl),
        f"--kubeconfig={fleet.kube.kubeconfig}",
        "drain",
        node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
    ]
    done = subprocess.run([*argv, "--timeout=600s"], capture_output=True, text=True, timeout=660)
    assert done.returncode == 0, done.stderr
