"""The nodes' control groups: one of the unified hierarchy (version 2), or one in every version 1 hierarchy."""

import os
from pathlib import Path

from devcluster.layout import Node

ROOT = Path("/sys/fs/cgroup")
_V1 = ("cpu", "cpuset", "memory", "pids", "devices", "freezer", "blkio")
_V2 = ("cpu", "cpuset", "memory", "pids")
"""Devices and freezing need no controller of their own there."""


def _mounts() -> list[list[str]]:
    """(target, type, options) of every mount."""
    return [line.split()[1:4] for line in Path("/proc/self/mounts").read_text().splitlines()]


def unified() -> bool:
    """Whether version 2 is what the kubelet and runc will use. A hybrid machine has it elsewhere, without controllers."""
    return any(mount[:2] == [str(ROOT), "cgroup2"] for mount in _mounts())


def hierarchies() -> list[Path]:
    if unified():
        return [ROOT]
    return sorted({Path(target) for target, kind, _ in _mounts() if kind == "cgroup" and target.startswith(f"{ROOT}/")})


def _offered() -> list[str]:
    return (ROOT / "cgroup.controllers").read_text().split()


def missing() -> list[str]:
    """Controllers that a node needs and the machine does not offer."""
    if unified():
        return [name for name in _V2 if name not in _offered()]
    comounted = {option for _, kind, options in _mounts() if kind == "cgroup" for option in options.split(",")}
    return [name for name in _V1 if name not in comounted and not os.path.ismount(ROOT / name)]


def ensure(node: Node) -> None:
    for hierarchy in hierarchies():
        if hierarchy == ROOT:
            # The kubelet wants of its root whatever it knows and the machine has, such as hugetlb; below, it passes them on by itself.
            (ROOT / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in _offered()))
        group = hierarchy / node.cgroup
        group.mkdir(exist_ok=True)
        # An empty cpuset of version 1 accepts no process; the kubelet does not seed its root.
        for name in ("cpuset.cpus", "cpuset.mems") if hierarchy != ROOT else ():
            if (group / name).exists() and not (group / name).read_text().strip():
                (group / name).write_text((hierarchy / name).read_text())


def pids(node: Node) -> set[int]:
    """Every process in the node's groups: containers whose shim was killed are found here too."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for path in (hierarchy / node.cgroup).rglob("cgroup.procs"):
            try:
                found.update(int(line) for line in path.read_text().split())
            except OSError:
                continue
    return found


def remove(node: Node) -> None:
    for hierarchy in hierarchies():
        root = hierarchy / node.cgroup
        groups = sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True) if root.exists() else []
        for group in [*groups, root]:
            try:
                group.rmdir()
            except OSError:
                continue


def exists(node: Node) -> bool:
    return any((hierarchy / node.cgroup).exists() for hierarchy in hierarchies())
