"""Our exporter beside nvidia-smi."""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.gpu.machine import environment, smi, wait_for
from bench.processes import started
from tests.service.processes import ROOT, free_port

_QUERY = "memory.used,memory.total,temperature.gpu,power.draw,ecc.errors.uncorrected.volatile.total,utilization.gpu"
_READINGS = {
    "nvml_memory_used_bytes": ("memory.used", 2**20),
    "nvml_memory_total_bytes": ("memory.total", 2**20),
    "nvml_temperature_celsius": ("temperature.gpu", 1),
    "nvml_power_watts": ("power.draw", 1),
    "nvml_ecc_uncorrected_errors_total": ("ecc.errors.uncorrected.volatile.total", 1),
    "nvml_gpu_utilization_ratio": ("utilization.gpu", 0.01),
}


@contextmanager
def exporter(work: Path) -> Iterator[str]:
    port = free_port()
    env = environment(EXPORTER_HOST="127.0.0.1", EXPORTER_PORT=port, NODE_NAME="here")
    with started([sys.executable, "-m", "metrics_exporter"], env, work, cwd=ROOT):
        wait_for(f"http://127.0.0.1:{port}/metrics", 30)
        yield f"http://127.0.0.1:{port}/metrics"


def compared(url: str, samples: int) -> dict[str, Any]:
    """Medians of both, each asked in turn; power and use are what the driver averages, and move between two questions."""
    ours: dict[str, list[float]] = {name: [] for name in _READINGS}
    theirs: dict[str, list[float]] = {name: [] for name in _READINGS}
    fields = _QUERY.split(",")
    for _ in range(samples):
        lines = [line.rsplit(" ", 1) for line in httpx.get(url, timeout=10, trust_env=False).text.splitlines() if not line.startswith("#")]
        found = {series.partition("{")[0]: float(value) for series, value in lines}
        said = dict(zip(fields, smi(_QUERY), strict=True))
        for name, (field, unit) in _READINGS.items():
            if name in found and said[field].replace(".", "").isdigit():
                ours[name].append(found[name])
                theirs[name].append(float(said[field]) * unit)
        time.sleep(0.2)
    rows: dict[str, Any] = {}
    for name in _READINGS:
        if ours[name]:
            mine, other = statistics.median(ours[name]), statistics.median(theirs[name])
            rows[name] = {"exporter": mine, "nvidia_smi": other, "difference": abs(mine - other) / other if other else abs(mine - other)}
    return rows
