"""A real control plane before nodes that kwok makes up: what a preview, an explanation and a look-up of names cost as a fleet grows.

Part of bench.scale. The embedded cluster has one real node, where all but the fleet runs; the pods of the fleet are on nodes without a
machine. Nobody listens at their addresses, and no packet to them leaves the node.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import started
from components.contract import API_SERVER, OLLAMA, PORTS
from devcluster import cluster as embedded
from devcluster import toolchain
from devcluster.layout import Cluster, load
from infra.analysis.explain.report import report
from infra.lifecycle import embedded as lifecycle
from infra.program.settings.committed import stack_config
from tests import tiny_gguf
from tests.cluster.kube import Kube, eventually
from tests.service.processes import ROOT

FLEETS, SERVERS = "fleet:1", "server:1"
"""The model of the made-up servers, and that of the one real model server."""
POD_NETWORK = "198.19.0.0/16"
"""The half of RFC 2544's addresses that embedded clusters take last."""
_MARK = "modelfleet.example/made-up"
_KWOK = "kwok.x-k8s.io/node"
_CLASS = "made-up"
_LOST = 50
"""One node in so many is lost before the explanation is asked for."""
_STAYS, _GOES = ("stays", "198.19.0.0/17"), ("goes", "198.19.128.0/17")
_LEASE_S = 40
_LOOKUPS = 20
_OTHER_CLAIMS = 3
"""The models that all share, the copy of the model server, and what Prometheus keeps."""


@contextmanager
def made_up(work: Path) -> Iterator["Nodes"]:
    """A cluster of its own, until the block ends."""
    # As those of tests: who is killed leaves it to the next run of them.
    name = f"test-{os.getpid()}"
    gguf = tiny_gguf.make(work / "tiny.gguf", "Hello.")
    # A cluster should not have to wait out its build.
    toolchain.ensure(["kwok"])
    with ExitStack() as stack:
        stack.callback(_remove, name)
        cluster, images = lifecycle.start_embedded(name, 1, dict.fromkeys((FLEETS, SERVERS), gguf))
        subprocess.run(["ip", "-n", cluster.control_plane.netns, "route", "add", "unreachable", POD_NETWORK], check=True)
        stack.enter_context(_kept_by_kwok(cluster, *_STAYS, work))
        yield Nodes(work, cluster, lifecycle.image_overrides(images), Kube(embedded.binaries() / "kubectl", Path(cluster.kubeconfig)))


@contextmanager
def _kept_by_kwok(cluster: Cluster, which: str, pods: str, work: Path) -> Iterator[None]:
    """The nodes of that mark live until the block ends, with pods in that network; a while later Kubernetes says that they are lost."""
    tools = toolchain.ensure(["kwok"])
    argv = [
        *(str(tools / "kwok"), f"--kubeconfig={cluster.kubeconfig}", "--manage-all-nodes=false", f"--cidr={pods}"),
        *(f"--manage-nodes-with-annotation-selector={_KWOK}={which}", f"--node-lease-duration-seconds={_LEASE_S}"),
        *(f"--config={tools / stage}" for stage in sorted(toolchain.BY_NAME["kwok"].extra_files)),
    ]
    (work / which).mkdir(exist_ok=True)
    with started(argv, {"PATH": os.environ["PATH"], "HOME": str(work)}, work / which):
        yield


def _remove(name: str) -> None:
    if (cluster := load(name)) is not None:
        embedded.down(cluster)


@dataclass
class Nodes:
    """Grows, and never shrinks."""

    work: Path
    cluster: Cluster
    images: Mapping[str, Any]
    kube: Kube
    count: int = 0
    volumes: int = 0

    def grow(self, count: int, replicas: int) -> dict[str, Any]:
        """So many nodes and replicas: seconds until the stack is up, and what is measured then."""
        self._apply([_node(number) for number in range(self.count, count)])
        volumes = replicas + _OTHER_CLAIMS
        self._apply([_class(), *(_volume(self.work, number) for number in range(self.volumes, volumes))])
        self.count, self.volumes = count, volumes
        with _kept_by_kwok(self.cluster, *_GOES, self.work):
            deployment = lifecycle.on_embedded(self.cluster, "dev")
            began = time.monotonic()
            outputs = deployment.deploy({**self.images, **_settings(replicas)})
            self._scale(outputs.namespace, replicas)
            found = {
                "up_s": round(time.monotonic() - began, 1),
                "look_up": self._looked_up(outputs.namespace, replicas),
                "preview": measured("preview", self.cluster.name),
                "explain": measured("explain", self.cluster.name),
            }
        self._await_lost(sum(map(_is_lost, range(count))))
        return found | {"explain_with_lost_nodes": measured("explain", self.cluster.name, findings=True)}

    def _apply(self, objects: Sequence[Mapping[str, Any]]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        argv = [str(self.kube.kubectl), f"--kubeconfig={self.kube.kubeconfig}", "apply", "--server-side", "-f", "-"]
        subprocess.run(argv, input=text, text=True, check=True, stdout=subprocess.DEVNULL)

    def _scale(self, namespace: str, replicas: int) -> None:
        """As an autoscaler does, whose the number is."""
        # Of nodes that were lost and are back: kwok makes no pod ready twice.
        pods = self.kube.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/name={OLLAMA}")["items"]
        ill = [pod for pod in pods if any(each["type"] == "Ready" and each["status"] == "False" for each in pod["status"]["conditions"])]
        if names := [pod["metadata"]["name"] for pod in ill]:
            self.kube.run("delete", "pods", "-n", namespace, "--force", "--grace-period=0", *names)
        self.kube.run("scale", "statefulset", OLLAMA, "-n", namespace, f"--replicas={replicas}")

        def ready() -> int:
            return self.kube.get("statefulset", OLLAMA, "-n", namespace)["status"].get("readyReplicas", 0)

        eventually(ready, lambda found: found == replicas, 600, f"{replicas} replicas")

    def _looked_up(self, namespace: str, replicas: int) -> dict[str, Any]:
        """What the resolver of a gateway's pod says of the fleet's name, as the gateway asks it."""
        pods = self.kube.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/name={API_SERVER}")["items"]
        code = (
            "import json, socket, time\n"
            "found = []\n"
            f"for _ in range({_LOOKUPS}):\n"
            "    began = time.perf_counter()\n"
            f"    names = {{each[4][0] for each in socket.getaddrinfo('{OLLAMA}', {PORTS[OLLAMA]}, socket.AF_INET, socket.SOCK_STREAM)}}\n"
            "    found.append((time.perf_counter() - began, len(names)))\n"
            "print(json.dumps(found))"
        )

        def ask() -> list[tuple[float, int]]:
            asked = self.kube.exec(namespace, pods[0]["metadata"]["name"], "python", "-c", code)
            return json.loads(asked.stdout) if asked.returncode == 0 else []

        # DNS may be a few seconds behind.
        found = eventually(ask, lambda each: bool(each) and each[-1][1] == replicas, 60, f"{replicas} addresses")
        return {"addresses": replicas, "p50_ms": round(1000 * statistics.median(took for took, _ in found), 2)}

    def _await_lost(self, count: int) -> None:
        def not_ready() -> int:
            items = self.kube.get("nodes", "-l", _MARK)["items"]
            return sum(each["type"] == "Ready" and each["status"] != "True" for item in items for each in item["status"]["conditions"])

        eventually(not_ready, lambda found: found == count, 180, "lost nodes")


def _is_lost(number: int) -> bool:
    return number % _LOST == 0


def measured(command: str, *arguments: str, findings: bool = False) -> dict[str, Any]:
    """Seconds of a command, and MiB of its largest process. Exits where it fails."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, "-m", "bench.nodes", command, *arguments], cwd=ROOT, stdout=output)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise SystemExit(f"{command}: got exit status {process.returncode}, want 0; it said:\n{said[-2000:]}")
    lines = {"findings": len(said.splitlines())} if findings else {}
    return {"s": round(time.monotonic() - began, 2), "mib": round(used.ru_maxrss / 1024, 1), **lines}


def _settings(replicas: int) -> dict[str, Any]:
    committed = stack_config("dev")
    server = {**committed["modelfleet:modelServers"][0], "model": SERVERS, "modelId": "server-1"}
    tier = {"className": _CLASS, "size": "10Mi"}
    models = [{"name": name, "size": "2Mi", "kvBytesPerToken": 1024} for name in (FLEETS, SERVERS)]
    return {
        "models": models,
        "modelServers": [server],
        "storage": {"hot": tier, "shared": tier},
        "governance": {"cpu": "2000", "memory": "2Ti", "pods": 1000, "claims": 1000, "ephemeralStorage": "1Ti"},
        # With an autoscaler the update asks no replica how much context it holds, which these could not say.
        "fleet": {"replicas": replicas, "autoscaled": True},
        "workloads": {OLLAMA: {"nodeSelector": {_MARK: "true"}, "tolerations": [{"key": _MARK, "operator": "Exists"}]}},
    }


def _node(number: int) -> dict[str, Any]:
    room = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}
    name = f"made-up-{number}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {_MARK: "true", "kubernetes.io/hostname": name, "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"},
            "annotations": {_KWOK: (_GOES if _is_lost(number) else _STAYS)[0]},
        },
        "spec": {"taints": [{"key": _MARK, "value": "true", "effect": "NoSchedule"}]},
        "status": {"allocatable": room, "capacity": room},
    }


def _class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": _CLASS},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
    }


def _volume(work: Path, number: int) -> dict[str, Any]:
    """A directory of the one real node: one that is bound to a made-up pod is never looked at."""
    directory = work / f"volume-{number}"
    directory.mkdir()
    # Pods have no root.
    directory.chmod(0o777)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"made-up-{number}"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": _CLASS,
            "hostPath": {"path": str(directory), "type": "Directory"},
        },
    }


def main(arguments: Sequence[str]) -> int:
    """What `measured` starts: a preview, or an explanation, of the stack on a cluster of that name."""
    command, name = arguments
    cluster = load(name)
    if cluster is None:
        raise SystemExit(f"{name}: got no such cluster, want one that runs; run python -m bench.scale")
    deployment = lifecycle.on_embedded(cluster, "dev")
    if command == "explain":
        with contextlib.redirect_stderr(sys.stdout):
            report(deployment.context, deployment.kubeconfig, deployment.namespace, None)
    else:
        print("\n".join(deployment.cli.plan().lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
