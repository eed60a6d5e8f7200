"""Names, addresses and directories of one embedded cluster: every other module asks here."""

import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from devcluster.cache import locked
from modelfleet.place import WORK

_DEFAULT_NAME = "modelfleet"
MAX_NODES = 3
Runtime = Literal["containerd", "crio"]
"""The container runtime of every node of a cluster."""
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_API = "10.96.0.1"
SERVICE_DNS = "10.96.0.10"
POD_CIDR = "10.244.0.0/16"
CLUSTER_DOMAIN = "cluster.local"
API_PORT = 6443
REGISTRY = "10.245.0.1:5000"
"""Of every cluster's own registry, in the network namespace of its fabric: only its nodes have a route there."""
SLOTS = (*range(10, 250), *range(256 + 10, 256 + 250))
"""A slot's network is 198.18.x.0/24, from 256 on 198.19.x.0/24: RFC 2544 sets both aside for benchmarks, and no network routes them.
Some VPN clients use 198.18.0.0/16 for addresses of their own; then the second half is free."""


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says what to do."""


class RecordError(ClusterError):
    """The record of a cluster is there and says nothing."""


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
    checkout: Path = WORK
    """The directory whose `up` made it: a checkout, or that of who has the wheel."""
    runtime: Runtime = "containerd"

    @property
    def state_dir(self) -> Path:
        return clusters_dir() / self.name

    @property
    def subnet(self) -> str:
        return f"198.{18 + self.slot // 256}.{self.slot % 256}"

    @property
    def host_address(self) -> str:
        """The machine's own end of the link into the fabric."""
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
    def host_alias(self) -> str:
        """What the kernel keeps on the machine's end of the link: enough to find the cluster without its records."""
        return f"modelfleet {self.name} {self.node_count} {self.state_dir}"

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


def lock_file(name: str) -> Path:
    """Held by a command for as long as it changes the cluster."""
    return clusters_dir() / f"{name}.lock"


def load(name: str) -> Cluster | None:
    """The recorded cluster of that name, or None. Raises ClusterError on an unusable name or record."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise ClusterError(f"--name: got {name!r}, want 1..31 characters a-z, 0-9, '-' that start with a letter; choose another name")
    path = clusters_dir() / name / "cluster.json"
    try:
        record = json.loads(path.read_text())
        checkout = Path(record.get("checkout", WORK))
        runtime = RUNTIMES[RUNTIMES.index(record.get("runtime", "containerd"))]
        return Cluster(name=name, slot=int(record["slot"]), node_count=int(record["node_count"]), checkout=checkout, runtime=runtime)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise RecordError(f"{path}: got no readable record, want slot and node_count; run make down, which removes what is left") from None


def recorded() -> list[Cluster]:
    """Every cluster of this user on this machine that has a readable record."""
    found: list[Cluster] = []
    # Names alone: nothing is recorded for a user who may not look there, as under `su` without `-`.
    names = sorted(os.listdir(clusters_dir())) if os.access(clusters_dir(), os.R_OK | os.X_OK) else []  # noqa: PTH208
    for name in (each for each in names if (clusters_dir() / each / "cluster.json").exists()):
        try:
            cluster = load(name)
        except RecordError:
            continue
        if cluster is not None:
            found.append(cluster)
    return found


def default_name() -> str:
    """The name of this directory's cluster: that of the one it has, or else one that is made of its path, which no other makes."""
    for cluster in recorded():
        if cluster.checkout == WORK and cluster.name.startswith(_DEFAULT_NAME):
            return cluster.name
    return f"{_DEFAULT_NAME}-{hashlib.sha256(str(WORK).encode()).hexdigest()[:6]}"


def create(name: str, node_count: int, taken: Iterable[ipaddress.IPv4Network] = (), runtime: Runtime = "containerd") -> Cluster:
    """Record a new cluster in the lowest slot whose network overlaps none that is `taken`.

    Raises ClusterError when a cluster of that name has other nodes or another runtime, or no slot is free.
    """
    if not 1 <= node_count <= MAX_NODES:
        raise ClusterError(f"--nodes: got {node_count}, want 1..{MAX_NODES}; choose a number in that range")
    existing = load(name)
    if existing is not None:
        if existing.node_count != node_count:
            raise ClusterError(
                f"--nodes: got {node_count}, want {existing.node_count} as the running cluster {name!r} has; run down first to change it"
            )
        if existing.runtime != runtime:
            raise ClusterError(
                f"--runtime: got {runtime}, want {existing.runtime} as the running cluster {name!r} has; run down first to change it"
            )
        return existing
    clusters_dir().mkdir(parents=True, exist_ok=True)
    with locked(clusters_dir() / ".lock", "clusters"):
        return _record(name, node_count, list(taken), runtime)


def _record(name: str, node_count: int, taken: list[ipaddress.IPv4Network], runtime: Runtime) -> Cluster:
    used = {cluster.slot for cluster in recorded()}
    links = set(os.listdir("/sys/class/net"))  # noqa: PTH208 (names only)
    for slot in SLOTS:
        cluster = Cluster(name=name, slot=slot, node_count=node_count, runtime=runtime)
        network = ipaddress.IPv4Network(f"{cluster.subnet}.0/24")
        if slot in used or cluster.host_link in links or Path("/run/netns", cluster.fabric_netns).exists():
            continue
        if any(network.overlaps(other) for other in taken):
            continue
        cluster.state_dir.mkdir(parents=True, mode=0o700, exist_ok=True)
        save(cluster)
        return cluster
    routed = [str(network) for network in taken if network.overlaps(ipaddress.IPv4Network("198.18.0.0/15"))]
    raise ClusterError(
        f"network: got no free /24 of 198.18.0.0/15 (routes to {', '.join(routed) or 'none of it'}, {len(used)} clusters), want one; "
        "end the VPN or the clusters that have them"
    )


def save(cluster: Cluster) -> None:
    """Write the record whole or not at all."""
    record = {"slot": cluster.slot, "node_count": cluster.node_count, "checkout": str(cluster.checkout), "runtime": cluster.runtime}
    write(cluster.state_dir / "cluster.json", json.dumps(record) + "\n")


def write(path: Path, text: str) -> None:
    """Write a configuration file unless it says that already: kube-proxy, for one, exits when its file is touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.read_text() == text:
            return
    except FileNotFoundError:
        pass
    fresh = path.with_name(f".{path.name}.partial")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        # Without it a power cut may leave the new name with no content.
        os.fsync(file.fileno())
    fresh.replace(path)
