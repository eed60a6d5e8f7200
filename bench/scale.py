"""What grows with a fleet: the look at its servers, and the answer to why something is not ready. Writes bench/results/scale.json.

A real API server before up to 1,000 addresses of loopback, which one made-up Ollama answers at; `explain` over the objects of as many
nodes, made as the API sends them: one node in fifty is lost, and as many servers as there are nodes find no GPU; and the stack on a real
control plane with up to 1,000 nodes of kwok's and 500 replicas (bench/nodes.py): a preview, an explanation, and a look-up of their name.

Loopback and a cluster of its own, as root, about a quarter of an hour, beside nothing else:
    python -m bench.scale
A run of seconds, to see that it works, prints its figures and writes nothing:
    python -m bench.scale small
"""

import asyncio
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load, nodes, proxies
from bench.conditions import beside, keep
from bench.gateway import percentile
from bench.processes import allow_descriptors, cpu_s, end_with_us, memory_bytes, started, wait_for
from devcluster import toolchain
from infra.analysis.explain.causes import explain
from infra.analysis.explain.snapshot import Snapshot
from tests.service import names
from tests.service.processes import ROOT, free_port

NOW = "2026-11-24T12:00:00+00:00"
_LOST = 50
"""One in so many nodes does not answer."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything a run does."""

    servers: tuple[int, ...]
    at_rest_s: float
    requests: int
    nodes: tuple[int, ...]
    """Of the control plane, each with half as many replicas."""


FULL = Sizes((10, 100, 300, 1000), 30, 1000, (100, 300, 1000))
SMALL = Sizes((10, 50), 4, 50, (10,))


def cluster(nodes: int) -> Snapshot:
    """A server on each node."""

    def named(name: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "uid": f"uid-{name}", "creationTimestamp": "2026-11-24T11:00:00Z", **fields}

    labels = {"app.kubernetes.io/name": "ollama"}
    objects: dict[str, list[dict[str, Any]]] = {"Namespace": [{"metadata": named("fleet"), "status": {"phase": "Active"}}]}
    lost = [number % _LOST == 0 for number in range(nodes)]
    objects["Node"] = [
        {
            "metadata": named(f"n{number}"),
            "spec": {},
            "status": {
                "allocatable": {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"},
                "conditions": [
                    {"type": "Ready", "status": "Unknown" if lost[number] else "True", "reason": "NodeStatusUnknown", "message": "m"}
                ],
            },
        }
        for number in range(nodes)
    ]
    objects["Pod"] = [
        {
            "metadata": named(f"ollama-{number}", labels=labels),
            "spec": {
                "nodeName": f"n{number}",
                "containers": [{"name": "ollama", "image": "x@sha256:0", "resources": {"requests": {"nvidia.com/gpu": "1"}}}],
                "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": f"models-ollama-{number}"}}],
            },
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "False" if lost[number] else "True"}],
                "containerStatuses": [
                    {
                        "name": "ollama",
                        "ready": not lost[number],
                        "restartCount": 0,
                        "state": {"running": {"startedAt": "2026-11-24T11:01:00Z"}},
                    }
                ],
            },
        }
        for number in range(nodes)
    ]
    message = f"0/{nodes} nodes are available: {nodes} Insufficient nvidia.com/gpu."
    objects["Pod"] += [
        {
            "metadata": named(
                f"waiting-{number}", labels=labels, ownerReferences=[{"kind": "StatefulSet", "name": "ollama", "controller": True}]
            ),
            "spec": {"containers": [{"name": "ollama", "image": "x@sha256:0", "resources": {"requests": {"nvidia.com/gpu": "1"}}}]},
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": message}]},
        }
        for number in range(nodes)
    ]
    objects["PersistentVolumeClaim"] = [
        {"metadata": named(f"models-ollama-{number}"), "spec": {"storageClassName": "hot"}, "status": {"phase": "Bound"}}
        for number in range(nodes)
    ]
    objects["Event"] = [
        {
            "metadata": named(f"ollama-{number}.{each}"),
            "involvedObject": {"kind": "Pod", "name": f"ollama-{number}", "uid": f"uid-ollama-{number}"},
            "reason": "Unhealthy",
            "message": "Readiness probe failed",
            "type": "Warning",
            "lastTimestamp": "2026-11-24T11:59:00Z",
        }
        for number in range(nodes)
        for each in range(3)
    ]
    objects["StorageClass"] = [{"metadata": named("hot")}]
    objects["StatefulSet"] = [
        {
            "metadata": named("ollama", labels=labels),
            "spec": {"replicas": nodes, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}},
            "status": {"replicas": nodes, "readyReplicas": nodes - sum(lost)},
        }
    ]
    return Snapshot(namespace="fleet", taken=NOW, objects=objects)


def explained(nodes: int) -> dict[str, Any]:
    """Seconds and MiB of one answer, and how many causes it names."""
    taken = cluster(nodes)
    started_at = time.thread_time()
    findings = explain(taken)
    took_s = time.thread_time() - started_at
    tracemalloc.start()
    explain(taken)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"s": round(took_s, 3), "mib": round(peak / 2**20, 1), "causes": len(findings)}


def looked_at(ours: proxies.Installed, servers: int, sizes: Sizes, work: Path) -> dict[str, Any]:
    """A gateway that only looks at its servers, and then one with a request after the other."""
    hosts = [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(servers)]
    port, listen = free_port(), free_port()
    with ExitStack() as stack:
        directory = work / f"of-{servers}"
        directory.mkdir()
        argv = [sys.executable, "-m", "bench.upstream", str(port), *hosts]
        (directory / "upstream").mkdir()
        stack.enter_context(started(argv, {"PATH": os.environ["PATH"]}, directory / "upstream", cwd=ROOT))
        argv, env = ours.start(f"http://{names.FLEET}:{port}", directory, listen)
        env = {**env, **names.Name(directory, *hosts).environment, "PATH": os.environ["PATH"]}
        gateway = stack.enter_context(started(argv, env, directory, cwd=ROOT))
        server = load.Server(f"http://127.0.0.1:{listen}", proxies.KEY)
        wait_for(f"{server.url}/ready", gateway, directory / "log")
        time.sleep(5)
        before, began = cpu_s(gateway.pid), time.monotonic()
        time.sleep(sizes.at_rest_s)
        at_rest = (cpu_s(gateway.pid) - before) / (time.monotonic() - began)
        memory = memory_bytes(gateway.pid)
        waits = asyncio.run(_asked(server, sizes.requests))
    return {
        "cores_at_rest": round(at_rest, 3),
        "mib": round(memory / 2**20, 1),
        "request_p50_ms": round(1000 * percentile(waits, 0.5), 2),
        "request_p99_ms": round(1000 * percentile(waits, 0.99), 2),
    }


async def _asked(server: load.Server, count: int) -> list[float]:
    """Seconds of each of so many requests, one after the other."""
    waits: list[float] = []
    connection = await load.connected(server)
    for _ in range(count):
        began = time.perf_counter()
        connection.send(load.document(server))
        await connection.rest()
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
    connection.transport.close()
    return waits


def main(arguments: Sequence[str]) -> int:
    sizes = SMALL if list(arguments) == ["small"] else FULL
    end_with_us()
    allow_descriptors(8 * max(sizes.servers) + 1000)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        ours = proxies.ours(Path(directory), {})
        results = {
            f"{count} servers": {"gateway": looked_at(ours, count, sizes, Path(directory)), "explain": explained(count)}
            for count in sizes.servers
        }
        with nodes.made_up(Path(directory)) as cluster:
            results |= {f"{count} nodes": {"replicas": count // 2, **cluster.grow(count, count // 2)} for count in sizes.nodes}
    tools = {name: toolchain.BY_NAME[name].version for name in ("kubernetes", "kwok", "pulumi")}
    record = beside("python -m bench.scale", load_before, {"aiohttp": ours.version, **tools}) | {
        "sizes": vars(sizes),
        "results": results,
    }
    keep("scale", record, whole=sizes is FULL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
