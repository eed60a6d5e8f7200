"""Nodes with CRI-O in place of containerd: chat, policies, what dies, and NVIDIA's handler with a driver that is made up."""

import json
import os
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.node_runtime import crio_drop_in, toml, toolkit_config
from devcluster import cluster as embedded
from devcluster import crio, node, processes, toolchain
from devcluster.layout import load
from infra.lifecycle import embedded as lifecycle
from tests import tiny_gguf
from tests.cluster.conftest import MODEL, NAME, SCRIPT, SERVER_ID, Stack, deployed
from tests.cluster.kube import Kube, eventually, of_others
from tests.cluster.test_network import DEPLOYED, agrees_with_the_table, standing
from tests.cluster.test_stack import ask

pytestmark = pytest.mark.cluster
FAKE_NVML = Path(__file__).parents[1] / "service" / "fake_nvml.c"
ASK_NVML = "import os, pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount(), os.major(os.stat('/dev/nvidia0').st_rdev))"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The dev stack on two nodes of its own."""
    name = f"{NAME}-crio"
    gguf = tiny_gguf.make(tmp_path_factory.mktemp("models") / "tiny.gguf", SCRIPT)
    try:
        cluster, images = lifecycle.start_embedded(name, 2, {MODEL: gguf}, runtime="crio")
        yield deployed(cluster, images, Kube(Path(embedded.binaries("crio")) / "kubectl", cluster.kubeconfig))
    finally:
        cluster = load(name)
        if cluster is not None:
            embedded.down(cluster)


def test_the_nodes_say_that_they_run_the_pinned_crio(stack: Stack) -> None:
    said = {each["status"]["nodeInfo"]["containerRuntimeVersion"] for each in stack.kube.get("nodes")["items"]}
    assert said == {f"cri-o://{toolchain.BY_NAME['crio'].version}"}


@pytest.mark.parametrize("model", [MODEL, SERVER_ID])
def test_a_chat_is_answered(stack: Stack, model: str) -> None:
    response = ask(stack, model)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == SCRIPT
    assert ask(stack, model, stream=True).text.rstrip().endswith("data: [DONE]")


def test_every_pair_of_pods_on_every_port_is_as_the_table_says(stack: Stack) -> None:
    with standing(stack, DEPLOYED) as probes:
        made = agrees_with_the_table(stack, probes, DEPLOYED)
        assert {(probes[source].node == probes[target].node) for source, target, _ in made if target in probes} == {True, False}


def test_containers_outlive_their_runtime(stack: Stack) -> None:
    def containers() -> dict[str, int]:
        items = stack.kube.get("pods", "-n", stack.outputs.namespace)["items"]
        return {item["metadata"]["name"]: sum(each["restartCount"] for each in item["status"]["containerStatuses"]) for item in items}

    before = containers()
    for each in stack.cluster.nodes:
        pid = processes.running_pid(stack.cluster, node.runtime_name(each))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    assert ask(stack, MODEL).status_code == 200
    eventually(lambda: embedded.status(stack.cluster)[-1], lambda row: row == ("cluster", "ready"), 90, "the nodes are ready again")
    assert containers() == before


def nvidia(stack: Stack, directory: Path) -> None:
    """What a GPU node has, on the first node: the files that the project writes for CRI-O, with the paths of here."""
    first = stack.cluster.nodes[0]
    library, specs = directory / "libnvidia-ml.so.1", directory / "cdi"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, FAKE_NVML], check=True)
    specs.mkdir()
    edits = {
        "deviceNodes": [{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}],
        "mounts": [{"hostPath": str(library), "containerPath": f"/usr/lib/x86_64-linux-gnu/{library.name}", "options": ["ro", "bind"]}],
    }
    spec = {"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [{"name": "all", "containerEdits": edits}]}
    (specs / "nvidia.json").write_text(json.dumps(spec))
    settings = tomllib.loads(toolkit_config("cdi"))
    settings["nvidia-container-runtime"]["runtimes"] = [str(crio.runtime_path(first))]
    settings["nvidia-container-runtime"]["modes"]["cdi"]["spec-dirs"] = [str(specs)]
    (directory / "nvidia-container-runtime").mkdir()
    (directory / "nvidia-container-runtime" / "config.toml").write_text(toml(settings))
    drop_in = tomllib.loads(crio_drop_in())
    handler: dict[str, Any] = drop_in["crio"]["runtime"]["runtimes"]["nvidia"]
    program = toolchain.ensure(["nvidia-container-toolkit"]) / Path(handler["runtime_path"]).name
    handler |= {"runtime_path": str(program), "runtime_root": "/run/crio/nvidia", "monitor_env": [f"XDG_CONFIG_HOME={directory}"]}
    (crio.drop_ins(first) / "99-nvidia.toml").write_text(toml(drop_in))


def test_nvidias_handler_gives_a_pod_the_device_and_the_library_of_the_driver(stack: Stack, tmp_path: Path) -> None:
    nvidia(stack, tmp_path)
    # CRI-O reads its drop-ins when it starts.
    assert embedded.up(stack.cluster.name, 2, runtime="crio") == stack.cluster
    metadata = {"name": "nvidia", "namespace": "default"}
    container = {
        "name": "ask",
        "image": stack.images["metrics-exporter"].reference,
        "command": ["python3", "-c", ASK_NVML],
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
    }
    pod = {"runtimeClassName": "nvidia", "restartPolicy": "Never", "nodeName": "n1", "containers": [container]}
    runtime_class = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}
    with of_others(stack.kube, runtime_class, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}):

        def phase() -> str:
            return str(stack.kube.get("pod", "nvidia")["status"]["phase"])

        eventually(phase, lambda found: found in ("Succeeded", "Failed"), 60, "the pod has asked")
        assert stack.kube.run("logs", "nvidia").split() == ["2", "195"]
