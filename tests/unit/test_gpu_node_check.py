"""GPU nodes as they are found: what each has, what it lacks, and what to do. The look itself runs on made-up nodes' files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.node_runtime import BINARY, CONTAINERD_CONFIG, TOOLKIT_CONFIG, node_files
from infra.analysis.gpu_nodes import Look, judge
from infra.lifecycle import gpu_node_check
from infra.lifecycle.trial import Cluster, Runs, Trial
from infra.program.settings.gpu import GpuSettings

IMPORTS = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\n"
CDI = """---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
- name: all
"""
GPU = GpuSettings.model_validate({"enabled": True, "memory": "46068Mi"})


def gpu(**fields: Any) -> GpuSettings:
    return GpuSettings.model_validate({"enabled": True, "memory": "81559Mi", **fields})


def node(version: str = "containerd://2.1.3", allocatable: dict[str, str] | None = None, **labels: str) -> dict[str, Any]:
    """As the API server has one."""
    return {
        "metadata": {"name": "gpu-1", "labels": {"nvidia.com/gpu.present": "true", **labels}},
        "spec": {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]},
        "status": {
            "nodeInfo": {"containerRuntimeVersion": version},
            "allocatable": {"cpu": "8", **({"nvidia.com/gpu": "1"} if allocatable is None else allocatable)},
        },
    }


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def looked(root: Path) -> Look:
    """What the Job's own program finds there; the driver's file is the pod's."""
    program = gpu_node_check._LOOKS.replace("'/node'", repr(str(root))).replace("/proc/driver", f"{root}/proc/driver")
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return Look.model_validate(json.loads(said))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node that has everything."""
    files = node_files("containerd", "cdi")
    write(tmp_path, {**files, CONTAINERD_CONFIG: IMPORTS, "/proc/driver/nvidia/version": DRIVER, "/var/run/cdi/nvidia.yaml": CDI})
    write(tmp_path, {"/dev/nvidia0": "", "/dev/nvidiactl": "", BINARY: ""})
    return tmp_path


def errors(root: Path, of: dict[str, Any], settings: GpuSettings = GPU, devices: int = 0) -> dict[str, str]:
    return {line.layer: line.error for line in judge(of, looked(root), settings, devices) if line.error}


def test_a_node_that_has_everything(root: Path) -> None:
    lines = judge(node(), looked(root), GPU, 0)
    assert [line.text for line in lines] == [
        "node gpu-1, driver: 570.86.15, 1 GPUs",
        f"node gpu-1, toolkit: {BINARY}",
        "node gpu-1, runtime: containerd://2.1.3",
        "node gpu-1, handler: nvidia is configured",
        "node gpu-1, CDI: 2 devices",
        "node gpu-1, devices: 1 nvidia.com/gpu",
    ]


def test_an_empty_node_lacks_every_layer(tmp_path: Path) -> None:
    bare = node(allocatable={})
    bare["spec"] = {}
    assert set(errors(tmp_path, bare)) == {"driver", "toolkit", "handler", "CDI", "devices"}
    assert [line.says for line in judge(bare, looked(tmp_path), GPU, 0) if line.layer == "taint"]


def test_a_main_file_that_does_not_read_the_drop_in(root: Path) -> None:
    write(root, {CONTAINERD_CONFIG: "version = 3\n"})
    want = 'want imports = ["/etc/containerd/conf.d/*.toml"] in it; add it and restart containerd 2.1.3'
    assert errors(root, node()) == {"handler": f"got {CONTAINERD_CONFIG} that does not read /etc/containerd/conf.d/99-nvidia.toml, {want}"}


@pytest.mark.parametrize("main", ["", "this is no TOML", 'imports = ["/elsewhere/*.toml"]\n'])
def test_a_main_file_of_any_content_is_judged(root: Path, main: str) -> None:
    write(root, {CONTAINERD_CONFIG: main})
    assert set(errors(root, node())) == {"handler"}


def test_a_handler_in_the_main_file_itself_will_do(root: Path) -> None:
    (root / "etc/containerd/conf.d/99-nvidia.toml").rename(root / CONTAINERD_CONFIG.removeprefix("/"))
    assert errors(root, node()) == {}


def test_an_older_containerd(root: Path) -> None:
    write(root, {**node_files("containerd-1", "cdi"), CONTAINERD_CONFIG: IMPORTS.replace("3", "2")})
    assert errors(root, node("containerd://1.7.24")) == {}


def test_crio_reads_its_drop_in_without_an_import(root: Path) -> None:
    assert set(errors(root, node("cri-o://1.33.2"))) == {"handler"}
    write(root, node_files("crio", "cdi"))
    assert errors(root, node("cri-o://1.33.2")) == {}


def test_another_runtime_is_named(root: Path) -> None:
    assert errors(root, node("docker://27.1"))["handler"].startswith("got the container runtime docker://27.1, want")


def test_the_toolkits_mode_is_that_of_the_stack(root: Path) -> None:
    write(root, {TOOLKIT_CONFIG: node_files("containerd", "legacy")[TOOLKIT_CONFIG]})
    assert errors(root, node())["toolkit"].startswith(f"got mode legacy in {TOOLKIT_CONFIG}, want cdi")
    assert "CDI" not in errors(root, node(), gpu(runtimeMode="legacy"))


def test_a_specification_that_knows_fewer_gpus_than_there_are(root: Path) -> None:
    write(root, {"/dev/nvidia1": ""})
    assert errors(root, node())["CDI"] == "got 2 devices for 2 GPUs, want all of them; make the specification again"


def test_shares_that_the_plugin_does_not_know_yet(root: Path) -> None:
    shared = gpu(sharing={"strategy": "mps", "replicas": 4})
    found = errors(root, node(), shared)
    assert found["devices"].startswith("got 1 nvidia.com/gpu, want nvidia.com/gpu.shared; name the sharing configuration to the plugin")
    assert errors(root, node(allocatable={"nvidia.com/gpu.shared": "4"}), shared) == {}


def test_partitions_and_the_state_of_their_layout(root: Path) -> None:
    parts = gpu(sharing={"strategy": "mig", "profile": "1g.10gb"})
    there = {"nvidia.com/mig-1g.10gb": "7"}
    assert errors(root, node(allocatable=there, **{"nvidia.com/mig.config.state": "success"}), parts) == {}
    found = errors(root, node(allocatable={}, **{"nvidia.com/mig.config.state": "failed"}), parts)
    assert found["MIG"].startswith("got nvidia.com/mig.config.state=failed, want success")
    assert found["devices"].startswith("got none, want nvidia.com/mig-1g.10gb")


def test_devices_of_a_dra_driver(root: Path) -> None:
    claims = gpu(allocation="dra")
    assert "devices" in errors(root, node(allocatable={}), claims)
    assert errors(root, node(allocatable={}), claims, devices=2) == {}


def test_a_node_whose_files_nobody_may_read_is_judged_by_the_cluster(root: Path) -> None:
    assert [line.layer for line in judge(node(), None, GPU, 0)] == ["devices"]


class _Emptied(Cluster):
    """Jobs that ended well there, and whose pods somebody has removed."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def create(self, version: str, kind: str, name: str, namespace: str | None, labels: object = None, **body: Any) -> None:
        self.made.append(kind)

    def items(self, version: str, kind: str, **where: str) -> list[dict[str, Any]]:
        return {"Node": [node()], "Job": [{"status": {"succeeded": 1}}]}.get(kind, [])


def test_a_node_whose_look_is_lost_is_said_to_be_unread() -> None:
    cluster = _Emptied()
    trial = Trial(cluster, Runs(image="x", user_id=None), reads_nodes=True)
    lines = list(gpu_node_check.check(cluster, trial, GPU))
    assert cluster.made == ["Namespace", "Job"]
    assert [line.layer for line in lines] == ["runtime", "devices"]
    assert lines[0].says == "its files were not read: the pod that read them is gone, with what it said"


@pytest.mark.parametrize("said", ["", "[]", "null", '{"driver": 3}', "Traceback"])
def test_what_a_pod_says_may_be_anything(said: str) -> None:
    assert gpu_node_check._look(said) is None
