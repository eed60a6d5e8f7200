"""An engine of Ollama's hangs: its replica takes no requests, the kubelet starts its container again, and it answers. 4 minutes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.kube import eventually
from tests.cluster.test_stack import ask
from tests.proofs.records import Proof

PROOF = Proof("hung-engine", guards=("ollama_agent", "components/ollama.py", "components/ollama_agent.py", "components/containers.py"))


def engines(uid: str) -> list[int]:
    """Processes of the pod that run a model: the embedded nodes' processes are this machine's."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            here = uid in (process / "cgroup").read_text() and b"llama-server" in (process / "cmdline").read_bytes()
        except OSError:
            continue
        found += [int(process.name)] if here else []
    return found


def container(stack: Stack) -> dict[str, Any]:
    """Status of the server's container."""
    pod = stack.kube.get("pod", "ollama-0", "-n", stack.outputs.namespace)
    (found,) = (each for each in pod["status"]["containerStatuses"] if each["name"] == "ollama")
    return dict(found)


@pytest.mark.timeout(900)
def test_an_engine_that_hangs_is_started_again(stack: Stack, figures: dict[str, Any]) -> None:
    assert ask(stack, MODEL).json()["choices"][0]["message"]["content"] == SCRIPT
    before = container(stack)["restartCount"]
    hung = engines(stack.kube.get("pod", "ollama-0", "-n", stack.outputs.namespace)["metadata"]["uid"])
    assert hung
    started = time.monotonic()
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: container(stack)["ready"], lambda ready: not ready, 120, "the replica takes no more requests")
    figures["to unready, s"] = round(time.monotonic() - started)
    eventually(lambda: container(stack)["restartCount"], lambda count: count > before, 240, "its container is started again")
    figures["to the restart, s"] = round(time.monotonic() - started)
    eventually(lambda: ask(stack, MODEL).status_code, lambda code: code == 200, 120, "an answer")
    figures["to an answer, s"] = round(time.monotonic() - started)
    assert not {pid for pid in hung if Path(f"/proc/{pid}").exists()}
