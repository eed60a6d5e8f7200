"""What clusters change of the machine itself, and setting it back when the last cluster of this user goes.

Taken down before the first change: kernel modules, controllers of the unified cgroup hierarchy, directories that had to be made.
"""

import contextlib
import json
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from devcluster import cgroups
from devcluster.cache import locked, tried
from devcluster.layout import ClusterError, clusters_dir, recorded, write

NETNS = "/run/netns"
"""Where iproute2 keeps its network namespaces."""
_BRIDGE = Path("/proc/sys/net/bridge")
_OURS = (
    *("br_netfilter", "bridge", "stp", "llc", "veth", "overlay"),
    *("ip_set", "ip_tables", "iptable_", "x_tables", "xt_", "nf_", "nft_", "nfnetlink"),
)
"""Beginnings of the names of modules that our links, firewalls and containers make the kernel load."""


def _path() -> Path:
    return clusters_dir() / "machine.json"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _read() -> dict[str, Any]:
    try:
        return dict(json.loads(_path().read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def _alone() -> AbstractContextManager[None]:
    return locked(clusters_dir() / ".lock", "clusters")


def begin() -> None:
    """Take down how the machine is, unless a cluster of this boot has changed it already, and load what policies need."""
    with _alone():
        before = _read()
        if before.get("boot") != _boot():
            now = {"boot": _boot(), "modules": _modules(), "controllers": cgroups.passed_on()}
            write(_path(), json.dumps({**now, "directories": before.get("directories", [])}))
    if not _BRIDGE.exists():
        _load_bridge_filter()


def _load_bridge_filter() -> None:
    """Policies must see what only crosses a bridge. The machine's own bridges stay as they were before the module came."""
    subprocess.run(["modprobe", "br_netfilter"], capture_output=True)
    if not _BRIDGE.exists():
        raise ClusterError("kernel: got no br_netfilter, want it for network policies; run a kernel that has the module")
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"):
        (_BRIDGE / name).write_text("0")


def make_directory(path: Path) -> None:
    """Make a directory on the machine that is ours to remove; its parents must be there or are ours too."""
    with _alone():
        missing = [parent for parent in (path, *path.parents) if not parent.exists()]
        if not missing:
            return
        record = _read()
        write(_path(), json.dumps({**record, "directories": sorted({*record.get("directories", []), *map(str, missing)})}))
        path.mkdir(parents=True)


def end() -> None:
    """Set the machine back, unless a cluster of this user is left. Directories that others use now stay."""
    with _alone():
        if not recorded():
            _set_back()


def _set_back() -> None:
    record = _read()
    kept: list[str] = []
    for directory in sorted(record.get("directories", []), reverse=True):
        if mounted_elsewhere(Path(directory)):
            kept.append(directory)
            continue
        with contextlib.suppress(OSError):
            if directory == NETNS and not any(Path(directory).iterdir()):
                # `ip netns add` mounts that directory on itself. A mount anywhere else is somebody else's.
                subprocess.run(["umount", directory], capture_output=True)
            Path(directory).rmdir()
    if record.get("boot") == _boot():
        cgroups.withdraw(name for name in cgroups.passed_on() if name not in record["controllers"])
        _unload([name for name in _modules() if name not in record["modules"] and name.startswith(_OURS)])
    if kept:
        write(_path(), json.dumps({"directories": kept}))
    else:
        _path().unlink(missing_ok=True)


def mounted_elsewhere(path: Path) -> bool:
    """Whether another mount namespace has a mount there, such as a node of another user's cluster.

    Linux removes the directory all the same, and takes the mount away with it.
    """
    own = Path("/proc/self/ns/mnt").stat().st_ino
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns" / "mnt").stat().st_ino != own and f" {path} " in (process / "mounts").read_text():
                return True
        except OSError:
            continue
    return False


def tidy() -> None:
    """Remove our own empty directories, unless somebody is at work there."""
    with contextlib.suppress(OSError), tried(clusters_dir() / ".lock") as held:
        if held and not any(path.name != ".lock" for path in clusters_dir().iterdir()):
            (clusters_dir() / ".lock").unlink()
            clusters_dir().rmdir()
            clusters_dir().parent.rmdir()


def _modules() -> list[str]:
    """Names of the kernel modules that are loaded; none where the kernel has no modules at all."""
    try:
        return sorted(line.split()[0] for line in Path("/proc/modules").read_text().splitlines())
    except FileNotFoundError:
        return []


def _unload(names: list[str]) -> None:
    """One that something uses stays loaded. A module goes after those that use it, so it is tried until nothing goes any more."""
    left = list(names)
    while left:
        stuck = [name for name in left if subprocess.run(["modprobe", "-r", name], capture_output=True).returncode]
        if stuck == left:
            return
        left = stuck
