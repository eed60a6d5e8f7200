"""Debian's Prometheus as a process on loopback, with what a test gives it to read, or to have read."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from devcluster import packages
from tests.service.processes import Service, free_port


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(packages.promtool()), *map(str, arguments)], capture_output=True, text=True, timeout=120)


@contextmanager
def running(
    work: Path, config: Mapping[str, Any], *flags: str, retention: Sequence[str] = ("--storage.tsdb.retention.time=400d",)
) -> Iterator[Service]:
    """It keeps its samples in `work`, where it finds those of a run before."""
    port = free_port()
    (work / "prometheus.yaml").write_text(yaml.safe_dump(dict(config)))
    argv = [str(packages.prometheus()), f"--config.file={work / 'prometheus.yaml'}", f"--storage.tsdb.path={work / 'tsdb'}"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", *retention, *flags]
    log = work / "prometheus.log"
    with log.open("ab") as handle, subprocess.Popen(argv, cwd=work, stdout=handle, stderr=handle) as process:
        service = Service(process, f"http://127.0.0.1:{port}", log)
        try:
            service.wait_for("/-/ready")
            yield service
        finally:
            process.terminate()
            process.wait(30)


def scraping(*addresses: str, interval_s: float = 1, **labels: str) -> dict[str, Any]:
    """A configuration that reads these addresses."""
    every = f"{round(interval_s * 1000)}ms"
    job = {"job_name": "gateways", "static_configs": [{"targets": list(addresses), "labels": labels}]}
    return {"global": {"scrape_interval": every, "scrape_timeout": every}, "scrape_configs": [job]}


def remember(work: Path, samples: Sequence[tuple[str, Mapping[str, str], float, float]]) -> None:
    """Have it find these samples as if it had read them: name, labels, value, and time in seconds since 1970."""

    def series(name: str, labels: Mapping[str, str]) -> str:
        escaped = {label: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for label, value in labels.items()}
        inner = ",".join(f'{label}="{value}"' for label, value in escaped.items())
        return f"{name}{{{inner}}}"

    ordered = sorted(samples, key=lambda each: (each[0], sorted(each[1].items()), each[3]))
    lines = [f"{series(name, labels)} {value!r} {time:.3f}" for name, labels, value, time in ordered]
    (work / "samples").write_text("\n".join([*lines, "# EOF", ""]))
    done = promtool("tsdb", "create-blocks-from", "openmetrics", work / "samples", work / "tsdb")
    assert done.returncode == 0, done.stdout + done.stderr
