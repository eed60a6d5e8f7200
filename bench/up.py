"""How long the embedded cluster and the dev stack take, and what they weigh. Writes bench/results/up.json.

Runs beside nothing else, on a cluster of its own, with tool and image caches warm:
    python -m bench.up
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.conditions import conditions, keep
from devcluster import cgroups, network, processes
from devcluster import cluster as embedded
from devcluster.layout import Cluster, load
from images import embedded as images_of
from infra.lifecycle.bring_up import QUESTION, chat
from infra.lifecycle.embedded import image_overrides, on_embedded

NAME = "modelfleet-bench"
IDLE_S = 60
AIMS = {"cluster_ready_s": 40, "stack_ready_s": 60, "second_up_s": 60, "idle_peak_gib": 2.5}
"""From the project's own goals; figures are given as a ratio to them."""


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.monotonic()
    result = action()
    return round(time.monotonic() - started, 1), result


def memory_bytes(cluster: Cluster) -> int:
    """Proportional set size of every process of the cluster, those in its containers too."""
    pids = {pid for name in processes.recorded(cluster) if (pid := processes.running_pid(cluster, name))}
    for each in cluster.nodes:
        pids |= cgroups.pids(each)
    pids |= network.processes(cluster)
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def idle_peak(cluster: Cluster) -> int:
    deadline = time.monotonic() + IDLE_S
    peak = 0
    while time.monotonic() < deadline:
        peak = max(peak, memory_bytes(cluster))
        time.sleep(2)
    return peak


def main() -> int:
    left = load(NAME)
    if left is not None:
        embedded.down(left)
    images = images_of.build()
    try:
        cluster_s, cluster = timed(lambda: embedded.up(NAME, 2))
        idle = idle_peak(cluster)
        embedded.push(cluster, list(images.values()))
        deployment = on_embedded(cluster, "dev")
        overrides = image_overrides(images)
        stack_s, outputs = timed(lambda: deployment.deploy(overrides))
        second_s, _ = timed(lambda: (embedded.up(NAME, 2), images_of.build(), deployment.deploy(overrides)))
        url = f"http://{cluster.control_plane.address}:{outputs.node_port}"
        chat_s, answer = timed(lambda: chat(url, deployment.key_file.read_text(), outputs.models[0].id, QUESTION))
        down_s, _ = timed(lambda: embedded.down(cluster))
    finally:
        left = load(NAME)
        if left is not None:
            embedded.down(left)
    figures = {"cluster_ready_s": cluster_s, "stack_ready_s": stack_s, "second_up_s": second_s, "idle_peak_gib": round(idle / 2**30, 2)}
    report = conditions("python -m bench.up") | {
        "figures": figures | {"first_chat_s": chat_s, "down_s": down_s, "answer": answer},
        "aims": AIMS,
        "ratio_to_aim": {name: round(figures[name] / aim, 2) for name, aim in AIMS.items()},
    }
    keep("up", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
