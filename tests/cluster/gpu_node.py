"""A node of the embedded cluster with two GPUs that are not there: a fake NVML, a device plugin of ours, NVIDIA's own runtime and CDI."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from components import node_runtime
from devcluster import processes, toolchain
from devcluster.layout import Cluster, Node
from devcluster.node import runtime_socket
from tests.cluster.device_plugin import SOCKET
from tests.cluster.kube import Kube, eventually

ROOT = Path(__file__).resolve().parents[2]
_INSIDE = "/run/fake-nvml"
_SMI = f"""#!/bin/sh
# What the driver's own program says (nvidia-smi(1), RETURN VALUE: 15 is a GPU that has fallen off the bus).
for device in /dev/nvidia[0-9]*; do
  number=${{device#/dev/nvidia}}
  if [ -e {_INSIDE}/lost-$number ]; then echo "Unable to determine the device handle for GPU$number: GPU is lost."; exit 15; fi
  echo "GPU $number: NVIDIA H200 (UUID: GPU-$number)"
done
"""
_MAJOR = 195
"""Of NVIDIA's devices (Linux, Documentation/admin-guide/devices.txt). No driver answers there."""


@dataclass(frozen=True)
class GpuNode:
    node: Node
    fake: Path
    """Directory of the files that change the fake NVML."""

    def lost(self, number: int) -> AbstractContextManager[None]:
        """A GPU, until the block ends."""
        return self.has(f"lost-{number}")

    @contextmanager
    def has(self, fault: str) -> Iterator[None]:
        """One of the fake NVML's, until the block ends."""
        (self.fake / fault).touch()
        try:
            yield
        finally:
            (self.fake / fault).unlink()


def _specification(fake: Path, library: Path, smi: Path) -> dict[str, object]:
    """What `nvidia-ctk cdi generate` writes of two GPUs, as far as there is anything of them here."""

    def nodes(*numbers: int) -> dict[str, object]:
        return {
            "deviceNodes": [
                {"path": f"/dev/nvidia{number}", "type": "c", "major": _MAJOR, "minor": number, "permissions": "rw"} for number in numbers
            ]
        }

    files = {library: "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", smi: "/usr/bin/nvidia-smi", fake: _INSIDE}
    mounts = [
        {"hostPath": str(path), "containerPath": place, "options": ["ro", "nosuid", "nodev", "bind"]} for path, place in files.items()
    ]
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            *({"name": f"GPU-{number}", "containerEdits": nodes(number)} for number in range(2)),
            {"name": "all", "containerEdits": nodes(0, 1)},
        ],
        "containerEdits": {"env": [f"FAKE_NVML={_INSIDE}"], "mounts": mounts},
    }


def _runtime(work: Path, specifications: Path) -> Path:
    """NVIDIA's runtime with our configuration of it, but for where specifications are: /etc/cdi is the machine's own."""
    text = node_runtime.toolkit_config("cdi")
    assert '"/etc/cdi", "/var/run/cdi"' in text
    (work / "toolkit.toml").write_text(text.replace('"/etc/cdi", "/var/run/cdi"', f'"{specifications}"'))
    binary = toolchain.ensure(["nvidia-container-toolkit"]) / "nvidia-container-runtime"
    wrapped = work / "nvidia-container-runtime"
    wrapped.write_text(f'#!/bin/sh\nNVIDIA_CTK_CONFIG_FILE_PATH={work / "toolkit.toml"} exec {binary} "$@"\n')
    wrapped.chmod(0o755)
    return wrapped


def _handler(runtime: Path) -> str:
    """Our drop-in's handler. The node's main file has the rest of it, and an imported table would take its place."""
    text = node_runtime.containerd_drop_in("containerd", "cdi", systemd_cgroup=False).replace(node_runtime.BINARY, str(runtime))
    path = ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes")
    table = tomllib.loads(text)
    for part in path:
        table = table[part]
    return "\n" + node_runtime.toml({"nvidia": table["nvidia"]}, path)


def _restart(cluster: Cluster, node: Node) -> None:
    """containerd with another configuration; pods live on. The supervisor starts it."""
    name = f"containerd-{node.name}"
    before = processes.running_pid(cluster, name)
    assert before is not None
    os.kill(before, signal.SIGTERM)
    eventually(lambda: processes.running_pid(cluster, name), lambda pid: pid not in (None, before), 30, "another containerd")
    argv = [str(toolchain.ensure(["containerd"]) / "ctr"), f"--address={runtime_socket(node)}", "version"]
    eventually(lambda: subprocess.run(argv, capture_output=True).returncode, lambda status: status == 0, 30, "its answer")


@contextmanager
def gpu_node(cluster: Cluster, node: Node, kube: Kube, work: Path) -> Iterator[GpuNode]:
    """Until the block ends, the node has two GPUs."""
    fake, specifications = work / "fake", work / "cdi"
    for directory in (fake, specifications):
        directory.mkdir()
    library = work / "libnvidia-ml.so.1"
    source = ROOT / "tests" / "service" / "fake_nvml.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    smi = work / "nvidia-smi"
    smi.write_text(_SMI)
    smi.chmod(0o755)
    (specifications / "nvidia.yaml").write_text(json.dumps(_specification(fake, library, smi)))
    config = node.directory / "config" / "containerd.toml"
    before = config.read_text()
    plugins = node.directory / "kubelet" / "device-plugins"
    with ExitStack() as stack:
        config.write_text(before + _handler(_runtime(work, specifications)))
        stack.callback(_restart, cluster, node)
        stack.callback(config.write_text, before)
        _restart(cluster, node)
        kube.run("label", "node", node.name, "nvidia.com/gpu.present=true")
        stack.callback(kube.run, "label", "node", node.name, "nvidia.com/gpu.present-")
        environment = os.environ | {"LD_LIBRARY_PATH": str(work), "FAKE_NVML": str(fake)}
        plugin = subprocess.Popen([sys.executable, "-m", "tests.cluster.device_plugin", str(plugins)], cwd=ROOT, env=environment)
        stack.callback((plugins / SOCKET).unlink, missing_ok=True)
        stack.callback(plugin.wait, 20)
        stack.callback(plugin.terminate)
        eventually(lambda: allocatable(kube, node), lambda count: count == "2", 60, "GPUs of the node")
        yield GpuNode(node, fake)


def allocatable(kube: Kube, node: Node) -> str:
    """GPUs of a node that pods may have."""
    return str(kube.get("node", node.name)["status"]["allocatable"].get("nvidia.com/gpu", "0"))
