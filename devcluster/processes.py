"""Start, find and end the cluster's processes.

A process is known by its id *and* its start time, so a recycled id is never mistaken for ours and never signalled. Its record says
how it was started, so that the supervisor can start it again.
"""

import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster.layout import Cluster, ClusterError, Node, write

STORE = "etcd"


@dataclass(frozen=True, kw_only=True)
class Process:
    """One long-running component. `node` says whose namespaces it joins; without one it joins `netns`, or the machine's own."""

    name: str
    argv: Sequence[str]
    node: Node | None = None
    netns: str = ""
    mounts: bool = False
    """Whether it also joins the node's mount namespace (runtime and kubelet do, the control plane need not)."""
    env: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[Path] = ()
    """What it reads when it starts: it is started again when one of them says something else."""

    def command(self) -> list[str]:
        netns = self.node.netns if self.node else self.netns
        if not netns:
            return list(self.argv)
        join = ["nsenter", f"--net=/run/netns/{netns}"]
        if self.node and self.mounts:
            join.append(f"--mount={self.node.mount_namespace}")
        return [*join, "--", *self.argv]

    def key(self) -> str:
        """What it was started with, as a digest."""
        digest = hashlib.sha256(json.dumps([self.command(), dict(self.env)]).encode())
        for path in self.files:
            digest.update(path.read_bytes())
        return digest.hexdigest()


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat (clock ticks since boot), or None when there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _record(cluster: Cluster, name: str) -> Path:
    return cluster.pid_dir / f"{name}.json"


def _read(cluster: Cluster, name: str) -> dict[str, Any]:
    """The record; empty without one that can be read."""
    try:
        return dict(json.loads(_record(cluster, name).read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def running_pid(cluster: Cluster, name: str) -> int | None:
    """The id of the recorded process while it lives."""
    record = _read(cluster, name)
    try:
        pid = int(record["pid"])
        return pid if start_time(pid) == record["start_time"] else None
    except (KeyError, ValueError):
        return None


def started_at(cluster: Cluster, name: str) -> float | None:
    """When the recorded process was started, in seconds since the epoch; None without a record."""
    try:
        return _record(cluster, name).stat().st_mtime
    except FileNotFoundError:
        return None


def ensure(cluster: Cluster, process: Process) -> bool:
    """Start the process unless it runs with this very command line and these very files. Returns whether it was started."""
    key = process.key()
    if running_pid(cluster, process.name) is not None:
        if _read(cluster, process.name).get("key") == key:
            return False
        stop(cluster, process.name)
    cluster.log_dir.mkdir(parents=True, exist_ok=True)
    env = {"HOME": str(cluster.state_dir), **process.env}
    _start(cluster, process.name, {"argv": process.command(), "env": env, "key": key})
    return True


def restart(cluster: Cluster, name: str) -> None:
    """Start a recorded process that has ended, just as before; after the store, its readers have ended. Raises ClusterError."""
    record = _read(cluster, name)
    if "key" not in record:
        raise ClusterError(f"{_record(cluster, name)}: got no record of how {name} is started, want one; run up")
    _start(cluster, name, {part: record[part] for part in ("argv", "env", "key")})
    if name == STORE:
        end_readers(cluster)


def _start(cluster: Cluster, name: str, how: dict[str, Any]) -> None:
    pid = _spawn(how["argv"], log_file(cluster, name), how["env"])
    started = start_time(pid)
    if started is None:
        raise ClusterError(f"{name}: got an exit at once, want a running process; see {log_file(cluster, name)}")
    try:
        write(_record(cluster, name), json.dumps({"pid": pid, "start_time": started, **how}))
    except OSError:
        # Without a record nobody would know of it, and it would be in the way of the next one.
        os.kill(pid, signal.SIGKILL)
        raise


def _spawn(argv: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
    """A process in a session of its own, which outlives us; so there is no Popen object that would wait for it."""
    command = ["/usr/bin/env", "-C", "/", *argv]
    writable = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, str(log), writable, 0o600)]
    environment = {"PATH": os.environ.get("PATH", os.defpath), **env}
    return os.posix_spawn(command[0], command, environment, file_actions=[*actions, (os.POSIX_SPAWN_DUP2, 1, 2)], setsid=True)


def stop(cluster: Cluster, name: str, timeout_s: float = 10.0) -> None:
    """End a recorded process, and forget it: SIGTERM, and SIGKILL after `timeout_s`."""
    _end(cluster, name, timeout_s)
    _record(cluster, name).unlink(missing_ok=True)


def end_readers(cluster: Cluster) -> None:
    """End what has watched the store, where another store process takes over; their records stay.

    A store that could not write (a full disk) comes back older than it was, and who knew more of it waits for ever for what is no news.
    """
    for name in recorded(cluster):
        if name.startswith(("kube", "provisioner")):
            # The API server would wait for its watchers.
            _end(cluster, name, 1.0)


def _end(cluster: Cluster, name: str, timeout_s: float) -> None:
    pid = running_pid(cluster, name)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while running_pid(cluster, name) is not None:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + timeout_s
        reap(pid)
        time.sleep(0.02)


def reap(pid: int) -> None:
    """Collect a child that has ended; one of another parent is not ours to collect."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def recorded(cluster: Cluster) -> list[str]:
    """Names of all processes that have a record."""
    return sorted(path.stem for path in cluster.pid_dir.glob("*.json"))


def log_file(cluster: Cluster, name: str) -> Path:
    return cluster.log_dir / f"{name}.log"


def tail(cluster: Cluster, name: str, lines: int = 15) -> str:
    try:
        return "\n".join(log_file(cluster, name).read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"
