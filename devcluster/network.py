"""The cluster's links: a bridge in a namespace of its own, one namespace a node, one link to the machine.

The machine's own namespace gets one veth with one address, and nothing else: no rule, no sysctl, no listening socket. The registry's
address is in the bridge's namespace, and only nodes have a route to it.
"""

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster import footprint
from devcluster.layout import POD_CIDR, REGISTRY, SERVICE_CIDR, Cluster, ClusterError, Node

_REGISTRY_IP = REGISTRY.partition(":")[0]
_NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of linux/sched.h."""


def _run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    if check and done.returncode:
        raise ClusterError(f"{' '.join(argv)}: got {done.stderr.strip()!r}, want success; see devcluster status, or run down and up")
    return done.stdout if not done.returncode else ""


def _ip(netns: str | None, *argv: str, check: bool = True) -> str:
    return _run("ip", *(["-n", netns] if netns else []), *argv, check=check)


def _sysctl(netns: str, key: str, value: str) -> None:
    path = "/proc/sys/" + key.replace(".", "/")
    _run("nsenter", f"--net=/run/netns/{netns}", "sh", "-c", f"echo {value} > {path}")


def _ensure_netns(name: str) -> None:
    if not Path("/run/netns", name).exists():
        _run("ip", "netns", "add", name)
        _ip(name, "link", "set", "lo", "up")


@contextmanager
def inside(netns: str) -> Iterator[None]:
    """Put this thread, and the processes that it starts meanwhile, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, _NEW_NETWORK):
            raise ClusterError(f"{netns}: got {os.strerror(ctypes.get_errno())}, want to enter that network namespace; run up to repair it")

    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            wanted = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ClusterError(f"{netns}: got no such network namespace, want it; run up to repair it") from None
        try:
            enter(wanted)
        finally:
            os.close(wanted)
        try:
            yield
        finally:
            enter(before)
    finally:
        os.close(before)


def resolves(node: Node, server: str, name: str, timeout_s: float = 1.0) -> bool:
    """Whether the DNS server, asked from the node, has an IPv4 address for the name (RFC 1035, one query by UDP)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    # Header: identity, recursion desired, one question; then the name, type A, class IN.
    query = struct.pack(">6H", os.getpid() & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">B2H", 0, 1, 1)
    try:
        with inside(node.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(timeout_s)
            asking.connect((server, 53))
            asking.send(query)
            answer = asking.recv(512)
    except (OSError, ClusterError):
        return False
    if len(answer) < len(query) or answer[:2] != query[:2]:
        return False
    _, flags, _, answers = struct.unpack(">4H", answer[:8])
    return flags & 0xF == 0 and answers > 0


def owner(cluster: Cluster) -> str:
    """What the machine's end of the slot's link says of whose it is; empty without a link, or on one that says nothing."""
    try:
        return Path("/sys/class/net", cluster.host_link, "ifalias").read_text().strip()
    except OSError:
        return ""


def ensure(cluster: Cluster) -> None:
    """Make or repair the links. A node whose link is broken gets a new one; its processes notice by themselves.

    Raises ClusterError where another cluster has this one's addresses: two users that both had a cluster before the machine restarted.
    """
    if (other := owner(cluster)) and other != cluster.host_alias:
        raise ClusterError(f"{cluster.host_link}: got the link of another cluster ({other}), want our own; run down for that cluster first")
    fabric = cluster.fabric_netns
    footprint.make_directory(Path(footprint.NETNS))
    _ensure_netns(fabric)
    if not _ip(fabric, "link", "show", "br0", check=False):
        _ip(fabric, "link", "add", "br0", "type", "bridge")
        _ip(fabric, "link", "set", "br0", "up")
    _ip(fabric, "addr", "replace", f"{_REGISTRY_IP}/32", "dev", "br0")
    _ip(fabric, "route", "replace", f"{cluster.subnet}.0/24", "dev", "br0", "src", _REGISTRY_IP)
    if not _ip(None, "addr", "show", "dev", cluster.host_link, "to", cluster.host_address, check=False):
        _ip(None, "link", "del", cluster.host_link, check=False)
        _ip(None, "link", "add", cluster.host_link, "type", "veth", "peer", "name", "host", "netns", fabric)
        _ip(fabric, "link", "set", "host", "master", "br0", "up")
        _ip(None, "addr", "add", f"{cluster.host_address}/24", "dev", cluster.host_link)
        _ip(None, "link", "set", cluster.host_link, "up")
    _ip(None, "link", "set", cluster.host_link, "alias", cluster.host_alias)
    for node in cluster.nodes:
        _ensure_node(node)


def _ensure_node(node: Node) -> None:
    fabric = node.cluster.fabric_netns
    _ensure_netns(node.netns)
    if not _ip(node.netns, "addr", "show", "dev", "eth0", "to", node.address, check=False):
        _ip(node.netns, "link", "del", "eth0", check=False)
        _ip(node.netns, "link", "add", "eth0", "type", "veth", "peer", "name", node.name, "netns", fabric)
        _ip(fabric, "link", "set", node.name, "master", "br0")
        _ip(node.netns, "addr", "add", f"{node.address}/24", "dev", "eth0")
    _ip(fabric, "link", "set", node.name, "up")
    _ip(node.netns, "link", "set", "eth0", "up")
    # A Service address needs some route, or connect() fails before kube-proxy's rules can rewrite it.
    _ip(node.netns, "route", "replace", SERVICE_CIDR, "dev", "eth0")
    _ip(node.netns, "route", "replace", f"{_REGISTRY_IP}/32", "dev", "eth0")
    for other in node.cluster.nodes:
        if other != node:
            _ip(node.netns, "route", "replace", other.pod_subnet, "via", other.address)
    _sysctl(node.netns, "net.ipv4.ip_forward", "1")
    # Policies must also see traffic between two pods of one node, which only crosses the bridge.
    _sysctl(node.netns, "net.bridge.bridge-nf-call-iptables", "1")
    _ensure_way_to_machine(node)


def _ensure_way_to_machine(node: Node) -> None:
    """Pods reach the machine's own end (model sources) and the registry as their node: neither has a route to pods, and gets none."""
    lock = f"XTABLES_LOCKFILE={node.directory / 'xtables.lock'}"
    iptables = ["nsenter", f"--net=/run/netns/{node.netns}", "env", lock, "iptables", "-w", "-t", "nat"]
    for address in (node.cluster.host_address, _REGISTRY_IP):
        rule = ["POSTROUTING", "-s", POD_CIDR, "-d", f"{address}/32", "-j", "MASQUERADE"]
        if subprocess.run([*iptables, "-C", *rule], capture_output=True).returncode:
            _run(*iptables, "-A", *rule)


def processes(cluster: Cluster) -> set[int]:
    """Every process in one of the cluster's network namespaces, however it was started; never this one."""
    names = [cluster.fabric_netns, *(node.netns for node in cluster.nodes)]
    namespaces = {Path("/run/netns", name).stat().st_ino for name in names if Path("/run/netns", name).exists()}
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns" / "net").stat().st_ino in namespaces:
                found.add(int(process.name))
        except OSError:
            continue
    return found - {os.getpid()}


def remove(cluster: Cluster) -> None:
    """Remove the links and namespaces that `ensure` made; missing ones are fine."""
    if owner(cluster) in ("", cluster.host_alias):
        _ip(None, "link", "del", cluster.host_link, check=False)
    for name in [node.netns for node in cluster.nodes] + [cluster.fabric_netns]:
        if Path("/run/netns", name).exists():
            _run("ip", "netns", "del", name, check=False)


def leftovers(cluster: Cluster) -> list[str]:
    """What of the cluster's network is still on the machine."""
    names = [*[node.netns for node in cluster.nodes], cluster.fabric_netns]
    found = [f"network namespace {name}" for name in names if Path("/run/netns", name).exists()]
    if Path("/sys/class/net", cluster.host_link).exists():
        found.append(f"link {cluster.host_link}")
    return found
