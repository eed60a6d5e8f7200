"""Reading a namespace: logs of many nodes, some of which do not answer."""

import json
import threading
from pathlib import Path

import pytest

from infra.analysis.explain import snapshot
from tests.unit.kube_api import serving

NODES = 8


def test_logs_of_nodes_are_read_at_once_and_a_node_that_is_silent_costs_no_more_than_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = {"name": "ollama", "ready": True, "state": {"running": {}}}
    pods = [
        {
            "metadata": {"name": f"ollama-{number}"},
            "spec": {"nodeName": f"node-{number // 2}"},
            "status": {"containerStatuses": [running]},
        }
        for number in range(2 * NODES)
    ]
    # Only requests that are there at once get over it.
    together, asked = threading.Barrier(NODES - 1), list[str]()

    def answer(path: str) -> tuple[int, bytes]:
        if "/log?" not in path:
            return 200, json.dumps({"items": pods if path.endswith("/pods") else []}).encode()
        name = path.split("/")[-2]
        asked.append(name)
        if name in ("ollama-0", "ollama-1"):
            return 0, b""
        together.wait(20)
        return 200, f"log of {name}".encode()

    monkeypatch.setattr(snapshot, "_ask", lambda *_: None)
    with serving(answer, tmp_path) as kubeconfig:
        taken = snapshot.collect("c", kubeconfig, "fleet", None)
    answered = {f"ollama-{number}/ollama-agent": f"log of ollama-{number}" for number in range(2, 2 * NODES)}
    assert dict(taken.logs) == answered
    assert asked.count("ollama-0") + asked.count("ollama-1") == 1, "a silent node is asked once"
