"""What the machine must offer before a cluster can start; each refusal says what to do."""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from devcluster import cgroups
from devcluster.layout import ClusterError
from devcluster.toolchain import cache_root

_COMMANDS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "runc": "runc",
    "iptables": "iptables",
    "ipset": "ipset",
    "nft": "nftables",
    "conntrack": "conntrack",
    "mmdebstrap": "mmdebstrap",
    "gcc": "gcc",
}
_FILES = {"/usr/lib/cni/bridge": "containernetworking-plugins"}
_INOTIFY_PER_NODE = 12
"""Counted on a running node: kubelet 6, containerd 2, kube-proxy 1, and the control plane's on the first."""


def check() -> None:
    """Raise ClusterError unless a cluster can run here."""
    if sys.platform != "linux":
        raise ClusterError(f"platform: got {sys.platform}, want linux; use your own cluster: make up CONTEXT=name")
    if os.geteuid() != 0:
        raise ClusterError("user: got no root, want root for namespaces; run with sudo, or use your own cluster: make up CONTEXT=name")
    if absent := cgroups.missing():
        raise ClusterError(
            f"{cgroups.ROOT}: got no controllers {', '.join(absent)}, want them for the nodes' limits; "
            "run where the whole of a control group hierarchy is to be had, or use your own cluster: make up CONTEXT=name"
        )
    _ensure_bridge_filter()


def _ensure_bridge_filter() -> None:
    """Policies must see what only crosses a bridge. The machine's own bridges stay as they were before the module came."""
    settings = Path("/proc/sys/net/bridge")
    if settings.exists():
        return
    subprocess.run(["modprobe", "br_netfilter"], capture_output=True)
    if not settings.exists():
        raise ClusterError("kernel: got no br_netfilter, want it for network policies; run a kernel that has the module")
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"):
        (settings / name).write_text("0")


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


def missing_packages() -> list[str]:
    """Debian packages whose commands are not there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    commands = {package for command, package in _COMMANDS.items() if shutil.which(command, path=path) is None}
    files = {package for file, package in _FILES.items() if not Path(file).exists()}
    return sorted(commands | files)


def ensure_packages() -> None:
    """Install what is missing from Debian, saying so. Raises ClusterError where that is not possible."""
    packages = missing_packages()
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(f"packages: got none of {' '.join(packages)}, want them; install them with your distribution's package manager")
    print(f"devcluster: installing {' '.join(packages)} with apt-get, once", file=sys.stderr, flush=True)
    _apt("update", "-qq")
    _apt("install", "-qq", "-y", "--no-install-recommends", *packages)


def ensure_command(command: str, package: str) -> None:
    """Install one Debian package unless its command is there."""
    if shutil.which(command) is None:
        print(f"devcluster: installing {package} with apt-get, once", file=sys.stderr, flush=True)
        _apt("update", "-qq")
        _apt("install", "-qq", "-y", "--no-install-recommends", package)


def _apt(*arguments: str, cwd: Path | None = None) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        reason = done.stderr.strip()[-500:]
        raise ClusterError(f"apt-get {' '.join(arguments)}: got {reason!r}, want success; run apt-get update and try again")


def registry_binary() -> Path:
    """Debian's docker-registry."""
    return _unpacked("docker-registry", "docker-registry")


def promtool() -> Path:
    """Prometheus' tool for testing alert rules."""
    return _unpacked("prometheus", "promtool")


def _unpacked(package: str, command: str) -> Path:
    """A command of a package that is unpacked beside our tools: installing it would start a service on every address."""
    directory = cache_root() / "debian" / package
    binary = directory / "usr" / "bin" / command
    if binary.exists():
        return binary
    work = directory.with_name(f".{package}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # apt drops privileges for downloads, and the user _apt must be able to write here.
    _unpack([package], work)
    shutil.rmtree(directory, ignore_errors=True)
    (work / "root").rename(directory)
    shutil.rmtree(work, ignore_errors=True)
    return binary


def _unpack(packages: Sequence[str], work: Path) -> None:
    try:
        _apt("download", "-qq", "-o", "APT::Sandbox::User=root", *packages, cwd=work)
    except ClusterError:
        _apt("update", "-qq")
        _apt("download", "-qq", "-o", "APT::Sandbox::User=root", *packages, cwd=work)
    for archive in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(work / "root")], check=True)
