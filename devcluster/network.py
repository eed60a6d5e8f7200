"""The cluster's links: a bridge in a namespace of its own, one namespace a node, one link to the machine.

Nothing is added to the machine's own namespace but one veth with one address; no route, no iptables rule, no sysctl.
"""

import subprocess
from pathlib import Path

from devcluster.layout import POD_CIDR, SERVICE_CIDR, Cluster, ClusterError, Node


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


def ensure(cluster: Cluster) -> None:
    """Make or repair the links. A node whose link is broken gets a new one; its processes notice by themselves."""
    fabric = cluster.fabric_netns
    _ensure_netns(fabric)
    if not _ip(fabric, "link", "show", "br0", check=False):
        _ip(fabric, "link", "add", "br0", "type", "bridge")
        _ip(fabric, "link", "set", "br0", "up")
    if not _ip(None, "addr", "show", "dev", cluster.host_link, "to", cluster.host_address, check=False):
        _ip(None, "link", "del", cluster.host_link, check=False)
        _ip(None, "link", "add", cluster.host_link, "type", "veth", "peer", "name", "host", "netns", fabric)
        _ip(fabric, "link", "set", "host", "master", "br0", "up")
        _ip(None, "addr", "add", f"{cluster.host_address}/24", "dev", cluster.host_link)
        _ip(None, "link", "set", cluster.host_link, "up")
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
    for other in node.cluster.nodes:
        if other != node:
            _ip(node.netns, "route", "replace", other.pod_subnet, "via", other.address)
    _sysctl(node.netns, "net.ipv4.ip_forward", "1")
    # Policies must also see traffic between two pods of one node, which only crosses the bridge.
    _sysctl(node.netns, "net.bridge.bridge-nf-call-iptables", "1")
    _ensure_way_to_machine(node)


def _ensure_way_to_machine(node: Node) -> None:
    """Pods reach the machine's own end (registry, model sources) as their node: the machine has no route to pods, and gets none."""
    rule = ["POSTROUTING", "-s", POD_CIDR, "-d", f"{node.cluster.host_address}/32", "-j", "MASQUERADE"]
    iptables = ["nsenter", f"--net=/run/netns/{node.netns}", "iptables", "-w", "-t", "nat"]
    if subprocess.run([*iptables, "-C", *rule], capture_output=True).returncode:
        _run(*iptables, "-A", *rule)


def remove(cluster: Cluster) -> None:
    """Remove the links and namespaces that `ensure` made; missing ones are fine."""
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
