"""A node dies with a replica's volume on it, and the runbook's own commands bring the replica back elsewhere. 4 minutes."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster import cgroups, processes
from devcluster import cluster as embedded
from tests.cluster.conftest import MODEL, NAME, SCRIPT, Stack
from tests.cluster.kube import eventually
from tests.cluster.test_stack import ask
from tests.proofs import runbook
from tests.proofs.records import Proof

PROOF = Proof("node-loss", guards=("docs/runbook.md", "components", "devcluster", "infra/program", "Pulumi.dev.yaml", "model_sync"))


@pytest.fixture
def lost_node(stack: Stack) -> Iterator[str]:
    """The node of the only replica, dead until the end of the test. The control plane's processes live on."""
    name = stack.kube.get("pod", "ollama-0", "-n", stack.outputs.namespace)["spec"]["nodeName"]
    lost = next(each for each in stack.cluster.nodes if each.name == name)
    for component in (f"kubelet-{name}", f"containerd-{name}"):
        assert processes.running_pid(stack.cluster, component) is not None
        # Without a record the supervisor does not bring it back.
        processes.stop(stack.cluster, component, 0)
    for pid in cgroups.pids(lost):
        os.kill(pid, signal.SIGKILL)
    yield name
    embedded.up(NAME, 2)


def status(stack: Stack) -> int:
    """Of a chat; 0 while the API server's own pod, which may have been on the lost node, is not back."""
    try:
        return ask(stack, MODEL).status_code
    except httpx.TransportError:
        return 0


@pytest.mark.timeout(900)
def test_the_runbook_brings_a_replica_back_on_another_node(stack: Stack, lost_node: str, tmp_path: Path, figures: dict[str, Any]) -> None:
    started_at = time.monotonic()
    link = tmp_path / "kubectl"
    link.symlink_to(stack.kube.kubectl)
    values = {"NODE": lost_node, "NAMESPACE": stack.outputs.namespace, "REPLICA": "ollama-0"}
    environment = {**os.environ, **values, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(stack.kube.kubeconfig)}
    # The writer's and other pods of the node come back by themselves; only the replica needs the runbook.
    done = subprocess.run(
        ["bash", "-euc", runbook.commands("A node is lost")], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pod/ollama-0" in done.stdout
    pod = stack.kube.get("pod", "ollama-0", "-n", stack.outputs.namespace)
    assert pod["spec"]["nodeName"] != lost_node
    eventually(lambda: status(stack), lambda code: code == 200, 120, "an answer from the other node")
    assert ask(stack, MODEL).json()["choices"][0]["message"]["content"] == SCRIPT
    figures["from the first command to an answer, s"] = round(time.monotonic() - started_at)
