"""The nodes' control groups: one of the unified hierarchy (version 2), or one in every version 1 hierarchy."""

import contextlib
import os
from collections.abc import Iterable
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
    """Roots below which the nodes' groups are made. A hybrid machine has one more, where the runtime makes groups: see `_all`."""
    if unified():
        return [ROOT]
    return sorted({Path(target) for target, kind, _ in _mounts() if kind == "cgroup" and target.startswith(f"{ROOT}/")})


def _all() -> list[Path]:
    """Every root below which groups of a node can be: ours, and those that the container runtime makes by itself."""
    return sorted({Path(target) for target, kind, _ in _mounts() if kind.startswith("cgroup") and Path(target).is_relative_to(ROOT)})


def offered() -> list[str]:
    """Controllers of the unified hierarchy; none on other machines."""
    return (ROOT / "cgroup.controllers").read_text().split() if unified() else []


def passed_on() -> list[str]:
    """Controllers that the root of the unified hierarchy passes on to the groups below it; none on other machines."""
    return (ROOT / "cgroup.subtree_control").read_text().split() if unified() else []


def withdraw(controllers: Iterable[str]) -> None:
    """Stop passing on `controllers` of the unified hierarchy, but for those that another group passes on in its turn."""
    used = {word for path in ROOT.glob("*/cgroup.subtree_control") for word in path.read_text().split()}
    for name in controllers:
        if name not in used:
            with contextlib.suppress(OSError):
                (ROOT / "cgroup.subtree_control").write_text(f"-{name}")


def unusable() -> str:
    """What is wrong with the unified hierarchy as a place for nodes. In a container it is often a group with processes of its own."""
    if not unified() or not (ROOT / "cgroup.type").exists():
        return ""
    return "a group of a container with processes in it" if (ROOT / "cgroup.procs").read_text().strip() else ""


def missing() -> list[str]:
    """Controllers that a node needs and the machine does not offer."""
    if unified():
        return [name for name in _V2 if name not in offered()]
    comounted = {option for _, kind, options in _mounts() if kind == "cgroup" for option in options.split(",")}
    return [name for name in _V1 if name not in comounted and not os.path.ismount(ROOT / name)]


def ensure(node: Node) -> None:
    for hierarchy in hierarchies():
        if hierarchy == ROOT:
            # The kubelet refuses a root that lacks a controller which it knows and the machine has. Below it, the kubelet does this itself.
            (ROOT / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in offered()))
        group = hierarchy / node.cgroup
        group.mkdir(exist_ok=True)
        # An empty cpuset of version 1 accepts no process; the kubelet does not seed its root.
        for name in ("cpuset.cpus", "cpuset.mems") if hierarchy != ROOT else ():
            if (group / name).exists() and not (group / name).read_text().strip():
                (group / name).write_text((hierarchy / name).read_text())


def pids(node: Node) -> set[int]:
    """Every process in the node's groups: containers whose shim was killed are found here too."""
    found: set[int] = set()
    for hierarchy in _all():
        for path in (hierarchy / node.cgroup).rglob("cgroup.procs"):
            try:
                found.update(int(line) for line in path.read_text().split())
            except OSError:
                continue
    return found


def remove(node: Node) -> None:
    for hierarchy in _all():
        root = hierarchy / node.cgroup
        groups = sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True) if root.exists() else []
        for group in [*groups, root]:
            try:
                group.rmdir()
            except OSError:
                continue


def exists(node: Node) -> bool:
    return any((hierarchy / node.cgroup).exists() for hierarchy in _all())


def found(pattern: str) -> list[str]:
    """Names of the groups directly below any root that match a shell pattern."""
    return sorted({path.name for root in _all() for path in root.glob(pattern) if path.is_dir()})
