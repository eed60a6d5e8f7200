"""A preview of prod against the same objects as plain YAML under `kubectl diff`. Writes bench/results/preview.json.

Both look at one fresh cluster of one node, alternating, so that both meet the same machine; neither changes anything in it:
    python -m bench.preview
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.conditions import conditions, keep
from devcluster import cluster as embedded
from devcluster.layout import load
from infra import ROOT
from infra.analysis import preview
from infra.engine.cli import PulumiCli
from infra.program.cluster import identity
from infra.program.settings.images import IMAGE_NAMES

NAME = "modelfleet-preview-bench"
ROUNDS = 5
RESULT = ROOT / "bench" / "results" / "preview.json"


@dataclass(frozen=True)
class Run:
    wall_s: float
    peak_bytes: Mapping[str, int]
    """Highest resident set of each program that ran, by the name of its binary."""


def _tree(root: int) -> set[int]:
    found, waiting = set[int](), [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def measured(argv: Sequence[str], env: Mapping[str, str], accepted: Sequence[int]) -> Run:
    """One run of a command; its processes are looked at every 20 ms."""
    peaks: dict[str, int] = {}
    done = threading.Event()

    def watch(root: int) -> None:
        while not done.wait(0.02):
            for pid in _tree(root):
                try:
                    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                except OSError:
                    continue
                if "VmHWM" in lines:
                    name = lines["Name"].strip()
                    peaks[name] = max(peaks.get(name, 0), int(lines["VmHWM"].split()[0]) * 1024)

    started = time.monotonic()
    with subprocess.Popen(argv, cwd=ROOT, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        watcher = threading.Thread(target=watch, args=(process.pid,))
        watcher.start()
        output = process.communicate()[0]
        done.set()
        watcher.join()
    wall_s = time.monotonic() - started
    if process.returncode not in accepted:
        sys.exit(f"error: {' '.join(argv[:3])}: got exit status {process.returncode}, want {list(accepted)}; it said:\n{output[-2000:]}")
    return Run(wall_s, peaks)


def compare(work: Path) -> dict[str, Any]:
    cluster = embedded.up(NAME, 1)
    kubectl = str(embedded.binaries() / "kubectl")
    base = [kubectl, f"--kubeconfig={cluster.kubeconfig}"]
    # `kubectl diff` can say nothing about objects in a namespace that is not there.
    subprocess.run([*base, "create", "namespace", "modelfleet"], check=True, capture_output=True)
    rendered = work / "prod"
    rendered.mkdir()
    preview.render("prod", rendered, work / "render")
    cli = PulumiCli(stack="prod", state_dir=work / "state", env={"KUBECONFIG": str(cluster.kubeconfig)})
    cli.ensure_stack()
    config = preview.stack_config("prod")
    config["modelfleet:cluster"] = {"context": cluster.context, "identity": identity(cluster.context, str(cluster.kubeconfig))}
    config["modelfleet:images"] = {"builder": "prebuilt", "refs": {name: f"modelfleet/{name}@sha256:{'0' * 64}" for name in IMAGE_NAMES}}
    cli.write_config(config)
    cli.run("config", "set", "--secret", "modelfleet:apiKeys", stdin=json.dumps(["a-key-for-the-measurement"]))
    cli.run("config", "set", "--secret", "modelfleet:cachePassword", stdin="apasswordforthemeasurement")
    environment = cli.environment()
    pulumi = [shutil.which("pulumi", path=environment["PATH"]) or "pulumi", "preview", "--non-interactive", "--stack", "prod"]
    pulumi += ["--config-file", str(cli.config_file)]
    ours: list[Run] = []
    theirs: list[Run] = []
    for _ in range(ROUNDS):
        ours.append(measured(pulumi, environment, [0]))
        # 1 means that there are differences.
        theirs.append(measured([*base, "diff", "--server-side", "--recursive", "-f", str(rendered)], os.environ, [1]))
    return {"objects": len(list(rendered.rglob("*.yaml"))), "pulumi_preview": _figures(ours), "kubectl_diff": _figures(theirs)}


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    names = sorted({name for run in runs for name in run.peak_bytes})
    return {
        "wall_s": {
            "min": round(min(run.wall_s for run in runs), 2),
            "median": round(statistics.median(run.wall_s for run in runs), 2),
            "max": round(max(run.wall_s for run in runs), 2),
        },
        "peak_mib": {name: round(max(run.peak_bytes.get(name, 0) for run in runs) / 2**20) for name in names},
    }


def main() -> int:
    try:
        with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as work:
            figures = compare(Path(work))
    finally:
        left = load(NAME)
        if left is not None:
            embedded.down(left)
    ratio = figures["pulumi_preview"]["wall_s"]["median"] / figures["kubectl_diff"]["wall_s"]["median"]
    document = conditions("python -m bench.preview") | {"rounds": ROUNDS, **figures, "wall_ratio_to_kubectl_diff": round(ratio, 2)}
    keep("preview", document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
