"""Start, find and end the cluster's processes.

A process is known by its id *and* its start time, so a recycled id is never mistaken for ours and never signalled.
"""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devcluster.layout import Cluster, ClusterError, Node


@dataclass(frozen=True, kw_only=True)
class Process:
    """One long-running component. `node` says whose namespaces it joins; None means the machine's own."""

    name: str
    argv: Sequence[str]
    node: Node | None = None
    mounts: bool = False
    """Whether it also joins the node's mount namespace (runtime and kubelet do, the control plane need not)."""
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        if self.node is None:
            return list(self.argv)
        join = ["nsenter", f"--net=/run/netns/{self.node.netns}"]
        if self.mounts:
            join.append(f"--mount={self.node.mount_namespace}")
        return [*join, "--", *self.argv]


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat (clock ticks since boot), or None when there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _record(cluster: Cluster, name: str) -> Path:
    return cluster.pid_dir / f"{name}.json"


def running_pid(cluster: Cluster, name: str) -> int | None:
    """The id of the recorded process while it lives."""
    try:
        record = json.loads(_record(cluster, name).read_text())
    except (FileNotFoundError, ValueError):
        return None
    pid = int(record["pid"])
    return pid if start_time(pid) == record["start_time"] else None


def _command_of(cluster: Cluster, name: str) -> list[str] | None:
    try:
        return json.loads(_record(cluster, name).read_text())["argv"]
    except (FileNotFoundError, ValueError):
        return None


def ensure(cluster: Cluster, process: Process) -> bool:
    """Start the process unless it runs with this very command line. Returns whether it was started."""
    argv = process.command()
    pid = running_pid(cluster, process.name)
    if pid is not None:
        if _command_of(cluster, process.name) == argv:
            return False
        stop(cluster, process.name)
    cluster.pid_dir.mkdir(parents=True, exist_ok=True)
    cluster.log_dir.mkdir(parents=True, exist_ok=True)
    pid = _spawn(argv, cluster.log_dir / f"{process.name}.log", {"HOME": str(cluster.state_dir), **process.env})
    started = start_time(pid)
    if started is None:
        raise ClusterError(f"{process.name}: got an exit at once, want a running process; see {cluster.log_dir / f'{process.name}.log'}")
    fresh = _record(cluster, process.name).with_suffix(".partial")
    fresh.write_text(json.dumps({"pid": pid, "start_time": started, "argv": argv}))
    fresh.replace(_record(cluster, process.name))
    return True


def _spawn(argv: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
    """A process in a session of its own, which outlives us; so there is no Popen object that would wait for it."""
    command = ["/usr/bin/env", "-C", "/", *argv]
    writable = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, str(log), writable, 0o600)]
    environment = {"PATH": os.environ.get("PATH", os.defpath), **env}
    return os.posix_spawn(command[0], command, environment, file_actions=[*actions, (os.POSIX_SPAWN_DUP2, 1, 2)], setsid=True)


def stop(cluster: Cluster, name: str, timeout_s: float = 10.0) -> None:
    """End a recorded process: SIGTERM, and SIGKILL after `timeout_s`."""
    pid = running_pid(cluster, name)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while running_pid(cluster, name) is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + timeout_s
            _reap(pid)
            time.sleep(0.02)
    _record(cluster, name).unlink(missing_ok=True)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def recorded(cluster: Cluster) -> list[str]:
    """Names of all processes that have a record."""
    return sorted(path.stem for path in cluster.pid_dir.glob("*.json"))


def tail(cluster: Cluster, name: str, lines: int = 15) -> str:
    try:
        return "\n".join((cluster.log_dir / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"
