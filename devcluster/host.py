"""What the machine must offer before a cluster can start. Everything is looked at in the first second; each refusal says what to do."""

import ctypes
import ipaddress
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from devcluster import cgroups
from devcluster.layout import ClusterError, clusters_dir, default_name
from devcluster.toolchain import cache_root

OTHERWISE = "use make try, or your own cluster: make up CONTEXT=name"
DEBIAN = ("12", "13")
"""Releases on which the suite runs; packages of others have other names, paths and versions."""
_KERNEL = (5, 13)
"""kube-proxy's nftables mode needs it (Kubernetes' documentation of the mode)."""
_MEMORY_GIB = 5.5
"""The dev stack with two nodes takes 4 GiB; a machine sold with 6 GiB shows a little less."""
_INOTIFY_PER_NODE = 12
"""Counted on a running node: kubelet 6, containerd 2, kube-proxy 1, and the control plane's on the first."""
_LEAST_GIB = 0.5
"""Also a later `up` writes logs, and the layers of the images that changed."""
_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Disk that a first `up` takes, in GiB. What is there already is taken off."""

    cache_gib: float = 2.0
    """Below the cache: tools, images, models."""
    state_gib: float = 3.0
    """Below the state directory: the registry, and each node's unpacked images."""
    building_gib: float = 0.0
    """Below the cache while tools compile."""


def check(needs: Needs | None = None) -> None:
    """Raise ClusterError with one line for each thing that is missing. Changes nothing."""
    if sys.platform != "linux":
        raise ClusterError(f"platform: got {sys.platform}, want linux; {OTHERWISE}")
    problems = list(_problems(needs or Needs()))
    if problems:
        raise ClusterError("\n".join(problems))


def _problems(needs: Needs) -> Iterator[str]:
    if (machine := platform.machine()) != "x86_64":
        yield f"architecture: got {machine}, want x86_64 (images and tools are built for it alone so far); {OTHERWISE}"
    elif "avx2" not in _words(_PROC / "cpuinfo"):
        yield f"processor: got none of AVX2, want it for the engine llama.cpp; {OTHERWISE}"
    if os.geteuid() != 0:
        yield "user: got no root, want root for namespaces; run with sudo, or use your own cluster: make up CONTEXT=name"
    yield from _distribution()
    yield from _kernel()
    yield from _memory_and_disk(needs)
    if absent := cgroups.missing():
        yield f"{cgroups.ROOT}: got no controllers {', '.join(absent)}, want them for limits; run outside of containers, or {OTHERWISE}"
    elif reason := cgroups.unusable():
        yield f"{cgroups.ROOT}: got {reason}, want the root of the hierarchy; run outside of the container, or {OTHERWISE}"
    if len(str(clusters_dir())) > 150:
        yield f"XDG_STATE_HOME: got {len(str(clusters_dir()))} characters, want at most 150 (sockets lie below it); choose a shorter path"


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _distribution() -> Iterator[str]:
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    name, version = release.get("ID", "unknown"), release.get("VERSION_ID", "")
    if name != "debian" or version not in DEBIAN:
        yield f"distribution: got {name} {version or 'without a version'}, want debian {' or '.join(DEBIAN)}; {OTHERWISE}"


def _kernel() -> Iterator[str]:
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    if found is None or (int(found[1]), int(found[2])) < _KERNEL:
        yield f"kernel: got {platform.release()}, want {'.'.join(map(str, _KERNEL))} or newer for nftables; upgrade it, or {OTHERWISE}"
    if "overlay" not in _words(_PROC / "filesystems") and not _loadable("overlay"):
        yield f"kernel: got no overlay file system, want it for containers; run a kernel that has it, or {OTHERWISE}"
    if not (_PROC / "sys/net/bridge").exists() and not _loadable("br_netfilter"):
        yield f"kernel: got no br_netfilter, want it for network policies; run a kernel that has the module, or {OTHERWISE}"


def _loadable(module: str) -> bool:
    """Whether the module could be loaded, without loading it. Without kmod that is found out later."""
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin")
    return modprobe is None or subprocess.run([modprobe, "--dry-run", "--quiet", module], capture_output=True).returncode == 0


def _memory_and_disk(needs: Needs) -> Iterator[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if memory < _MEMORY_GIB:
        yield f"memory: got {memory:.1f} GiB, want {_MEMORY_GIB} GiB; {OTHERWISE}"
    wanted: dict[int, tuple[Path, float]] = {}
    cache, state = max(needs.cache_gib - _kept_gib(), min(needs.cache_gib, _LEAST_GIB)), needs.state_gib
    # os.path: what this user may not look into does not exist for it.
    if os.path.isdir(clusters_dir() / default_name()):  # noqa: PTH112
        state = min(state, _LEAST_GIB)
    for path, gib in ((cache_root(), cache + needs.building_gib), (clusters_dir(), state)):
        place = next(parent for parent in (path, *path.parents) if os.path.exists(parent))  # noqa: PTH110
        device = place.stat().st_dev
        wanted[device] = (place, wanted.get(device, (place, 0.0))[1] + gib)
    for place, gib in wanted.values():
        # Rounded down, or too little could look like enough.
        free = shutil.disk_usage(place).free // (2**30 / 10) / 10
        if free < gib:
            yield f"disk: got {free:.1f} GiB free at {place}, want {gib:.1f} GiB; free some, or move XDG_CACHE_HOME and XDG_STATE_HOME"
        if not os.access(place, os.W_OK):
            yield f"{place}: got a directory that cannot be written, want one that can; move XDG_CACHE_HOME and XDG_STATE_HOME"


def _kept_gib() -> float:
    blocks: dict[int, int] = {}
    # os.walk: what this user may not look into does not exist for it.
    for directory, _, names in itertools.chain.from_iterable(os.walk(cache_root() / kind) for kind in ("tools", "images", "models")):
        for name in names:
            # Another process may be at work there.
            with suppress(OSError):
                found = Path(directory, name).lstat()
                blocks[found.st_ino] = found.st_blocks
    return sum(blocks.values()) * 512 / 2**30


def main() -> int:
    """What `make up` runs before it fetches anything."""
    try:
        check()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_watches(node_count: int) -> None:
    """Raise ClusterError unless a new cluster of so many nodes can watch its files: kubelet and containerd need inotify instances."""
    wanted = _INOTIFY_PER_NODE * node_count
    libc = ctypes.CDLL(None, use_errno=True)
    got = list(itertools.takewhile(lambda handle: handle >= 0, (libc.inotify_init1(os.O_CLOEXEC) for _ in range(wanted))))
    for handle in got:
        os.close(handle)
    if len(got) < wanted:
        limit = Path("/proc/sys/fs/inotify/max_user_instances").read_text().strip()
        raise ClusterError(
            f"fs.inotify.max_user_instances: got {limit} with {len(got)} free, want {wanted} free for {node_count} nodes; "
            "end other clusters, or run sysctl -w fs.inotify.max_user_instances=1024"
        )


def taken_networks() -> list[ipaddress.IPv4Network]:
    """Every network that the machine has a route to: a cluster's own must overlap none of them.

    Routes wider than a /8 (a default route, or the two halves of one that a VPN sets) say nothing about who uses an address.
    """
    done = subprocess.run(["ip", "-json", "-4", "route", "show", "table", "all"], capture_output=True, text=True)
    routes = json.loads(done.stdout or "[]") if done.returncode == 0 else []
    networks = (ipaddress.IPv4Network(route["dst"]) for route in routes if route["dst"] != "default" and route.get("type") != "broadcast")
    return sorted({network for network in networks if network.prefixlen >= 8})


if __name__ == "__main__":
    sys.exit(main())
