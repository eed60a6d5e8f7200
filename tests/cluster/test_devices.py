"""A pod of the fleet and a model server on a node with GPUs: each sees its own, and a GPU that is lost makes its replica unready."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from components.contract import MODEL_SERVER, OLLAMA
from devcluster import cluster as embedded
from devcluster.oci import Image, assemble, cached_layer, write_tree
from images import embedded as images
from infra.analysis.explain.causes import explain
from infra.analysis.explain.snapshot import collect
from tests.cluster.conftest import Stack
from tests.cluster.gpu_node import GpuNode, allocatable, gpu_node
from tests.cluster.judge import Cause, all_end, judged_fast, one_after_the_other
from tests.cluster.kube import eventually
from tests.cuda_stand_in import LLAMA_SERVER

pytestmark = pytest.mark.cluster
DEPLOYS_FIRST = True
PODS = {OLLAMA: f"{OLLAMA}-0", MODEL_SERVER: f"{MODEL_SERVER}-0"}
"""Container to the pod that it is in."""
DEVICES = "import os; print(*sorted(name for name in os.listdir('/dev') if name.startswith('nvidia')))"


def image_for_gpus(work: Path) -> Image:
    """Ours of the model server, with a `llama-server` as images with CUDA have it."""
    program = work / "llama-server"
    program.write_text(LLAMA_SERVER.format(python="/usr/bin/python3"))
    place = "usr/local/bin/llama-server"
    added = cached_layer(work / "llama-server.tar", lambda target: write_tree(target, [(place, program)], {place: 0o755}))
    own = images.service("model-server")
    return assemble("modelfleet/model-server-cuda", [*own.layers, added], images.runtime_config("model-server"))


@pytest.fixture(scope="module")
def node(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuNode]:
    """With the fleet and the model server of the stack on its GPUs."""
    work = tmp_path_factory.mktemp("gpus")
    image = image_for_gpus(work)
    embedded.push(stack.cluster, [image])
    servers = [{**each, "gpus": 1, "llamaCpp": {"image": image.reference}} for each in stack.overrides["modelServers"]]
    gpus: dict[str, Any] = {
        "gpu": {"enabled": True, "memory": "16Gi", "sharing": {"strategy": "none"}},
        "governance": {"gpuQuota": 2},
        # There is no CUDA here, so the agent never calls the fleet's models loaded, and nobody may wait for that.
        "fleet": {"gpusPerPod": 1, "autoscaled": True},
        "modelServers": servers,
    }
    namespace = stack.outputs.namespace
    where = stack.kube.get("pod", PODS[MODEL_SERVER], "-n", namespace)["spec"]["nodeName"]
    with gpu_node(stack.cluster, next(each for each in stack.cluster.nodes if each.name == where), stack.kube, work) as made:
        stack.changed = True
        stack.deployment.deploy({**stack.overrides, **gpus})
        # Its copy may be on the other node.
        stack.kube.run("delete", "pvc", f"models-{PODS[OLLAMA]}", "-n", namespace, "--wait=false")
        stack.kube.run("delete", "pod", PODS[OLLAMA], "-n", namespace)
        yield made


def statuses(stack: Stack, pod: str) -> dict[str, Mapping[str, Any]]:
    """By container; of a pod that is made again, none."""
    found = stack.kube.get("pods", "-n", stack.outputs.namespace, f"--field-selector=metadata.name={pod}")["items"]
    kinds = [each["status"].get(kind, []) for each in found for kind in ("initContainerStatuses", "containerStatuses")]
    return {each["name"]: each for kind in kinds for each in kind}


def is_ready(stack: Stack, container: str) -> bool:
    return bool(statuses(stack, PODS[container]).get(container, {}).get("ready"))


def devices(stack: Stack, container: str) -> list[str]:
    done = stack.kube.exec(stack.outputs.namespace, PODS[container], "python3", "-c", DEVICES)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_each_sees_its_own_gpu_and_no_other(stack: Stack, node: GpuNode) -> None:
    for container, pod in PODS.items():
        eventually(lambda name=container: is_ready(stack, name), bool, 180, f"{container} of {pod}")
        where = stack.kube.get("pod", pod, "-n", stack.outputs.namespace)["spec"]["nodeName"]
        assert where == node.node.name, "the only node with GPUs"
    found = {container: devices(stack, container) for container in PODS}
    assert sorted(found.values()) == [["nvidia0"], ["nvidia1"]], found


def test_what_asks_for_no_gpu_sees_none(stack: Stack, node: GpuNode) -> None:
    """The agent beside Ollama has the same runtime."""
    namespace = stack.outputs.namespace
    done = stack.kube.exec(namespace, PODS[OLLAMA], "true")
    assert done.returncode == 0
    agent = ("exec", "-n", namespace, PODS[OLLAMA], "-c", "ollama-agent", "--", "python3", "-c", DEVICES)
    assert stack.kube.run(*agent).split() == []


def test_the_exporter_sees_every_gpu_and_claims_none(stack: Stack, node: GpuNode) -> None:
    exporter = next(
        pod["metadata"]["name"]
        for pod in stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", "app.kubernetes.io/name=metrics-exporter")["items"]
        if pod["metadata"]["ownerReferences"][0]["kind"] == "DaemonSet"
    )
    read = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9400/metrics', timeout=10).read().decode())"

    def up() -> list[str]:
        text = stack.kube.exec(stack.outputs.namespace, exporter, "python3", "-c", read).stdout
        return sorted(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("nvml_gpu_up{"))

    eventually(up, lambda found: found == ["1.0", "1.0"], 60, "both GPUs")
    with node.lost(1):
        eventually(up, lambda found: found == ["0.0", "1.0"], 30, "one GPU")


@pytest.mark.parametrize("container", [MODEL_SERVER, OLLAMA])
def test_a_lost_gpu_makes_its_replica_unready_within_a_minute_and_no_other(stack: Stack, node: GpuNode, container: str) -> None:
    eventually(lambda: allocatable(stack.kube, node.node), lambda count: count == "2", 60, "both GPUs healthy")
    eventually(lambda: all(is_ready(stack, each) for each in PODS), bool, 120, "both ready")
    (own,) = devices(stack, container)
    (other,) = (each for each in PODS if each != container)
    with node.lost(int(own.removeprefix("nvidia"))):
        began = time.monotonic()
        eventually(lambda: is_ready(stack, container), lambda ready: not ready, 60, f"{container} unready")
        print(f"{container} unready {time.monotonic() - began:.0f} s after its GPU was lost")
        assert is_ready(stack, other)
        # The kubelet gives it to nobody else.
        eventually(lambda: allocatable(stack.kube, node.node), lambda count: count == "1", 30, "a GPU less")
        found = explain(collect(stack.deployment.context, stack.deployment.kubeconfig, stack.outputs.namespace, None))
        assert any(finding.subject == f"StatefulSet/{container}" for finding in found), found
    eventually(lambda: is_ready(stack, container), bool, 60, f"{container} ready again")
    assert statuses(stack, PODS[container])[container]["restartCount"] == 0


def cause(alert: str, says: str, fault: str) -> Cause[GpuNode]:
    return Cause((alert,), f"a fake NVML says {says}", lambda node: node.has(fault))


STAGES = (
    [
        cause("GpuIsLost", "that a GPU is lost", "lost-0"),
        cause("GpuIsHeldBack", "that heat holds a GPU back", "hot"),
        cause("GpuHasErrors", "that a GPU has had memory errors", "flipped"),
    ],
    [cause("GpuDriverDown", "nothing: the driver hangs", "hung")],
)
CAUSES = tuple(each for stage in STAGES for each in stage)


def test_alerts_fire_by_what_is_wrong_with_gpus_and_end_with_it(stack: Stack, node: GpuNode) -> None:
    eventually(lambda: all(is_ready(stack, each) for each in PODS), bool, 120, "both ready")
    with judged_fast(stack) as judge:
        # An increase needs the count of before, and a GPU that was lost a moment ago has none yet.
        eventually(lambda: judge.query("nvml_ecc_uncorrected_errors_total"), lambda found: found == [0, 0], 60, "both GPUs are counted")
        one_after_the_other(judge, node, STAGES)
        all_end(judge, CAUSES, 120)
    eventually(lambda: all(is_ready(stack, each) for each in PODS), bool, 120, "both ready again")
