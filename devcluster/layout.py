"""Names, addresses and directories of one embedded cluster: every other module asks here."""

import fcntl
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_NAME = "modelfleet"
MAX_NODES = 3
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_API = "10.96.0.1"
SERVICE_DNS = "10.96.0.10"
POD_CIDR = "10.244.0.0/16"
CLUSTER_DOMAIN = "cluster.local"
API_PORT = 6443
REGISTRY_PORT = 5000
SLOTS = range(10, 250)
"""Third octet of a cluster's own 198.18.x.0/24: RFC 2544 benchmarking space, not routed on any network."""


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node: a network namespace, a mount namespace and a cgroup of its own."""

    name: str
    number: int
    cluster: "Cluster"

    @property
    def address(self) -> str:
        return f"{self.cluster.subnet}.{10 + self.number}"

    @property
    def pod_subnet(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def pod_gateway(self) -> str:
        return f"10.244.{self.number}.1"

    @property
    def netns(self) -> str:
        return f"mf{self.cluster.slot}-{self.name}"

    @property
    def mount_namespace(self) -> Path:
        return self.cluster.namespaces_dir / f"{self.name}-mnt"

    @property
    def cgroup(self) -> str:
        """Name below the root of every hierarchy."""
        return f"{self.cluster.cgroup_prefix}{self.name}"

    @property
    def directory(self) -> Path:
        return self.cluster.state_dir / "nodes" / self.name


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What identifies a cluster on this machine. `slot` picks its addresses, so two can live side by side."""

    name: str
    slot: int
    node_count: int

    @property
    def state_dir(self) -> Path:
        return clusters_dir() / self.name

    @property
    def subnet(self) -> str:
        return f"198.18.{self.slot}"

    @property
    def host_address(self) -> str:
        """The machine's own end of the link into the fabric; the registry listens here and nowhere else."""
        return f"{self.subnet}.1"

    @property
    def fabric_netns(self) -> str:
        return f"mf{self.slot}-fabric"

    @property
    def host_link(self) -> str:
        return f"mf{self.slot}-host"

    @property
    def cgroup_prefix(self) -> str:
        return f"modelfleet-{self.slot}-{self.name}-"

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(Node(name=f"n{number}", number=number, cluster=self) for number in range(1, self.node_count + 1))

    @property
    def control_plane(self) -> Node:
        """The control plane shares the first node's network namespace, so it reaches pods and Services."""
        return self.nodes[0]

    @property
    def api_url(self) -> str:
        return f"https://{self.control_plane.address}:{API_PORT}"

    @property
    def registry(self) -> str:
        return f"{self.host_address}:{REGISTRY_PORT}"

    @property
    def context(self) -> str:
        """The kubeconfig context's name."""
        return self.name

    @property
    def kubeconfig(self) -> Path:
        return self.state_dir / "kubeconfig"

    @property
    def pki_dir(self) -> Path:
        return self.state_dir / "pki"

    @property
    def config_dir(self) -> Path:
        return self.state_dir / "config"

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def pid_dir(self) -> Path:
        return self.state_dir / "pids"

    @property
    def namespaces_dir(self) -> Path:
        return self.state_dir / "namespaces"

    @property
    def shared_dir(self) -> Path:
        """Bound into every node: the stand-in for a shared file system."""
        return self.state_dir / "shared"


def clusters_dir() -> Path:
    """`$XDG_STATE_HOME/modelfleet/clusters`, by default below `~/.local/state`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "modelfleet" / "clusters"


def load(name: str) -> Cluster | None:
    """The recorded cluster of that name, or None. Raises ClusterError on an unusable name."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise ClusterError(f"--name: got {name!r}, want 1..31 characters a-z, 0-9, '-' that start with a letter; choose another name")
    try:
        record = json.loads((clusters_dir() / name / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    return Cluster(name=name, slot=record["slot"], node_count=record["node_count"])


def recorded() -> list[Cluster]:
    """Every cluster that this user has on this machine."""
    names = sorted(path.parent.name for path in clusters_dir().glob("*/cluster.json"))
    return [cluster for name in names if (cluster := load(name)) is not None]


def create(name: str, node_count: int) -> Cluster:
    """Record a new cluster in the lowest free slot. Raises ClusterError when a cluster of that name has other nodes."""
    if not 1 <= node_count <= MAX_NODES:
        raise ClusterError(f"--nodes: got {node_count}, want 1..{MAX_NODES}; choose a number in that range")
    existing = load(name)
    if existing is not None:
        if existing.node_count != node_count:
            raise ClusterError(
                f"--nodes: got {node_count}, want {existing.node_count} as the running cluster {name!r} has; run down first to change it"
            )
        return existing
    clusters_dir().mkdir(parents=True, exist_ok=True)
    with (clusters_dir() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _record(name, node_count)


def _record(name: str, node_count: int) -> Cluster:
    taken = {cluster.slot for cluster in recorded()}
    links = set(os.listdir("/sys/class/net"))  # noqa: PTH208 (names only)
    free = next((slot for slot in SLOTS if slot not in taken and f"mf{slot}-host" not in links), None)
    if free is None:
        raise ClusterError("slots: got none free, want one of 198.18.10..249; remove clusters with down")
    cluster = Cluster(name=name, slot=free, node_count=node_count)
    cluster.state_dir.mkdir(parents=True, mode=0o700, exist_ok=True)
    (cluster.state_dir / "cluster.json").write_text(json.dumps({"slot": free, "node_count": node_count}) + "\n")
    return cluster


def write(path: Path, text: str) -> None:
    """Write a configuration file unless it says that already: kube-proxy, for one, exits when its file is touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.read_text() == text:
            return
    except FileNotFoundError:
        pass
    fresh = path.with_name(f".{path.name}.partial")
    fresh.write_text(text)
    fresh.replace(path)
