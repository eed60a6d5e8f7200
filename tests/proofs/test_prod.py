"""The committed prod stack on a cluster of two nodes: by an overlay of named keys it comes up, is rolled, drained, and taken down.

10 minutes. What the overlay may not say is as committed: three replicas of the fleet and of the API server, retained storage, production
rules, quotas, priorities, policies.
"""

import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster import cluster as embedded
from devcluster.layout import load
from devcluster.oci import Image
from infra.lifecycle import embedded as lifecycle
from infra.lifecycle import own_cluster, removal
from infra.lifecycle.bring_up import chat
from infra.lifecycle.deployment import CommandError, Deployment
from infra.program.settings.committed import stack_config
from modelfleet_outputs import FleetOutputs
from tests import tiny_gguf
from tests.cluster.kube import Kube, eventually
from tests.overlay import WITHOUT_GPUS, laid_over, sections
from tests.proofs import runbook, ways
from tests.proofs.records import Proof

PROOF = Proof("prod", guards=("Pulumi.prod.yaml", "docs/runbook.md", "__main__.py", "infra", "components", "images", *ways.SERVICES))
NAME = f"test-{os.getpid()}-prod"
MODEL, SCRIPT = "tiny:scripted", "Hello from prod."
OVERLAY: dict[str, dict[str, Any]] = {
    "storage": {
        "hot": {"provisioner": "modelfleet.dev/local", "size": "1Gi"},
        "shared": {"provisioner": "modelfleet.dev/shared", "size": "2Gi"},
    },
    "gpu": {"enabled": False},
    "governance": {"gpuQuota": 0, "cpu": "8", "memory": "16Gi"},
    "fleet": {
        "gpusPerPod": 0,
        "contextLength": 4096,
        "minContext": 4096,
        "promptCache": "64Mi",
        "resources": {"cpu": "50m", "memory": "512Mi"},
    },
    "cache": {"maxMemory": "64Mi", "resources": {"cpu": "20m", "memory": "128Mi"}},
    "apiServer": {"resources": {"cpu": "50m", "memory": "256Mi"}},
    "monitoring": {"resources": {"cpu": "20m", "memory": "128Mi"}},
}
"""What no laptop has: the drivers of volumes, GPUs, and sizes. `images` and `models` take the place of the committed ones."""
SERVER = {
    **WITHOUT_GPUS,
    **{"model": MODEL, "modelId": "tiny-server", "contextLength": 4096, "resources": {"cpu": "50m", "memory": "512Mi"}},
}
"""Of the model server; the rest of it is as committed."""


def on_a_laptop(built: Mapping[str, Image]) -> dict[str, Any]:
    """The sections that are not as committed. `tests/unit/test_overlays.py` holds everything else equal."""
    committed = sections(stack_config("prod"))
    overrides: dict[str, Any] = {section: laid_over(committed[section], values) for section, values in OVERLAY.items()}
    overrides["modelServers"] = [{**each, **SERVER} for each in committed["modelServers"]]
    return overrides | {**lifecycle.image_overrides(built), "models": [{"name": MODEL, "size": "2Mi", "kvBytesPerToken": 1024}]}


@pytest.fixture
def prod(tmp_path: Path) -> Iterator[tuple[Deployment, dict[str, Any], Kube]]:
    try:
        cluster, built = lifecycle.start_embedded(NAME, 2, {MODEL: tiny_gguf.make(tmp_path / "tiny.gguf", SCRIPT)})
        overrides = on_a_laptop(built)
        kube = Kube(embedded.binaries() / "kubectl", cluster.kubeconfig)
        yield lifecycle.on_embedded(cluster, "prod"), overrides, kube
    finally:
        left = load(NAME)
        if left is not None:
            embedded.down(left)


def ask(deployment: Deployment, outputs: FleetOutputs) -> str:
    """One answer, through a port that is forwarded to the API server: prod's Service is for the cluster alone."""
    with own_cluster.port_forward(deployment, outputs) as url:
        return chat(url, deployment.key(), MODEL, "Say it.")


def answers_while_drained(kube: Kube, deployment: Deployment, outputs: FleetOutputs) -> dict[str, int]:
    """The node with two replicas goes empty by the runbook, and answers come all the while; afterwards the fleet is whole.

    A forwarded port ends with the pod that it was forwarded to, which is no matter of the stack: such a request is counted apart.
    """
    namespace = outputs.namespace
    pods = kube.get("pods", "-n", namespace, "-l", "app.kubernetes.io/name=ollama")["items"]
    [(node, count)] = Counter(pod["spec"]["nodeName"] for pod in pods).most_common(1)
    assert count == 2
    done, answers, cut = threading.Event(), list[str](), list[str]()

    def asks() -> None:
        while not done.is_set():
            try:
                answers.append(ask(deployment, outputs))
            except (CommandError, httpx.TransportError) as error:
                cut.append(type(error).__name__)

    def pending() -> list[str]:
        found = kube.get("pods", "-n", namespace, "-l", "app.kubernetes.io/name=ollama", "--field-selector=status.phase=Pending")
        return [pod["metadata"]["name"] for pod in found["items"]]

    environment = {**os.environ, "KUBECONFIG": str(kube.kubeconfig)}
    drain = ["kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=600s"]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(asks)
        try:
            with subprocess.Popen(drain, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as draining:
                [first] = eventually(pending, bool, 300, "the first replica waits for its node")
                environment |= {"NAMESPACE": namespace, "REPLICA": first}
                commands = runbook.commands("A node is drained")
                subprocess.run(["bash", "-euc", commands], env=environment, check=True, timeout=600)
                said = draining.communicate(timeout=600)[0]
            assert draining.returncode == 0, said
            assert "disruption budget" in said
            kube.run("uncordon", node)
            ready = lambda: kube.get("statefulset", "ollama", "-n", namespace)["status"].get("readyReplicas", 0)  # noqa: E731
            eventually(ready, lambda count: count == 3, 300, "the whole fleet after the drain")
        finally:
            done.set()
        asking.result()
    assert set(answers) == {SCRIPT}
    assert len(cut) <= len(answers) / 10, cut
    return {"answers": len(answers), "forwarded ports that ended": len(cut)}


@pytest.mark.timeout(3600)
def test_prod_comes_up_is_rolled_drained_and_taken_down(
    prod: tuple[Deployment, dict[str, Any], Kube], figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, overrides, kube = prod
    monkeypatch.setenv("PATH", f"{embedded.binaries()}:{os.environ['PATH']}")
    outputs = deployment.deploy(overrides)
    assert ask(deployment, outputs) == SCRIPT
    namespace = outputs.namespace
    wanted = {"StatefulSet/ollama": 3, "Deployment/api-server": 3, "StatefulSet/model-server": 2}
    for name, count in wanted.items():
        kind, _, item = name.partition("/")
        assert kube.get(kind, item, "-n", namespace)["status"]["readyReplicas"] == count, name

    # Rolled once.
    before = {pod["metadata"]["uid"] for pod in kube.get("pods", "-n", namespace, "-l", "app.kubernetes.io/name=ollama")["items"]}
    deployment.deploy({**overrides, "fleet": {**overrides["fleet"], "maxQueue": 17}})
    after = {pod["metadata"]["uid"] for pod in kube.get("pods", "-n", namespace, "-l", "app.kubernetes.io/name=ollama")["items"]}
    assert len(after) == 3
    assert not before & after

    figures["while drained"] = answers_while_drained(kube, deployment, outputs)

    # Taken down: what is retained stays.
    removal.down(deployment, agreed=True)
    left = [each.name for each in deployment.objects()]
    assert {"Namespace/modelfleet", "PersistentVolumeClaim/shared-models"} <= set(left)
    assert not [name for name in left if name.startswith(("StatefulSet/", "Deployment/", "Job/"))]
    assert kube.get("pvc", "shared-models", "-n", namespace)["status"]["phase"] == "Bound"
    figures["kept"] = left
