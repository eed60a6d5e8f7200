"""Bring a cluster up, down, and say how it is. `up` is also the repair: it starts whatever is not there."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from devcluster import addons, cgroups, controlplane, host, network, node, oci, pki, processes, system_images, toolchain
from devcluster.layout import Cluster, ClusterError, create, load
from devcluster.oci import Image

TOOLS = ("kubernetes", "kubectl", "etcd", "containerd", "coredns", "kube-router", "local-path-provisioner")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def binaries() -> Path:
    return toolchain.ensure(TOOLS)


def up(name: str, node_count: int, timeout_s: float = 180.0) -> Cluster:
    """A ready cluster of that name: nodes Ready, DNS answering. Starts only what is missing."""
    host.check()
    host.ensure_packages()
    tools = binaries()
    # On a new machine these take minutes, which no process of a half-started cluster should have to wait out.
    images = [system_images.pause(), system_images.coredns(tools), system_images.helper()]
    started = time.monotonic()
    if load(name) is None:
        host.check_watches(node_count)
    cluster = create(name, node_count)
    pki.ensure(cluster)
    network.ensure(cluster)
    controlplane.write_config(cluster)
    cluster.shared_dir.mkdir(exist_ok=True)
    began: list[str] = []

    def start(items: Sequence[processes.Process]) -> None:
        began.extend(item.name for item in items if processes.ensure(cluster, item))

    start(controlplane.processes(cluster, tools))
    for each in cluster.nodes:
        cgroups.ensure(each)
        if node.ensure_mount_namespace(each):
            _stop_node_processes(cluster, each.name)
        node.write_config(each)
        if processes.running_pid(cluster, f"containerd-{each.name}") is None:
            # Left by one that was killed; its successor must be waited for.
            node.runtime_socket(each).unlink(missing_ok=True)
        (each.directory / "hot").mkdir(exist_ok=True)
        start(node.processes(each, tools)[:1])
    start([addons.registry_process(cluster)])
    for each in cluster.nodes:
        _wait_runtime(each)
        start(node.processes(each, tools)[1:])
    _wait_registry(cluster)
    push(cluster, images)
    controlplane.wait_ready(cluster, timeout_s)
    if began:
        addons.apply(cluster, tools, addons.manifests(images[1].reference))
    start(addons.provisioner_processes(cluster, tools, images[2].reference))
    _wait_nodes(cluster, timeout_s)
    if began:
        say(f"devcluster: {cluster.name} is ready after {time.monotonic() - started:.0f} s (started {', '.join(began)})")
    return cluster


def _stop_node_processes(cluster: Cluster, node_name: str) -> None:
    """A new mount namespace strands what ran in the old one."""
    for name in processes.recorded(cluster):
        if name.endswith(f"-{node_name}"):
            processes.stop(cluster, name)


def _wait_runtime(each: node.Node, timeout_s: float = 30.0) -> None:
    """The kubelet gives up at once without its runtime's socket."""
    deadline = time.monotonic() + timeout_s
    name = f"containerd-{each.name}"
    while not node.runtime_socket(each).exists():
        if processes.running_pid(each.cluster, name) is None or time.monotonic() > deadline:
            log = processes.tail(each.cluster, name)
            raise ClusterError(f"{name}: got no socket, want a running container runtime; its log ends:\n{log}")
        time.sleep(0.05)


def _wait_registry(cluster: Cluster, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if httpx.get(f"http://{cluster.registry}/v2/", timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if processes.running_pid(cluster, "registry") is None or time.monotonic() > deadline:
            log = processes.tail(cluster, "registry")
            raise ClusterError(
                f"registry: got no answer at {cluster.registry}, want one; free that port and run up again. Its log ends:\n{log}"
            )
        time.sleep(0.1)


def push(cluster: Cluster, images: Sequence[Image]) -> None:
    """Make images available to every node under their own names."""
    for image in images:
        tag = "3.10" if image.name.endswith("/pause") else "embedded"
        oci.push(image, cluster.registry, tag)


def _conditions(item: dict[str, dict[str, list[dict[str, str]]]], kind: str) -> bool:
    return any(condition["type"] == kind and condition["status"] == "True" for condition in item.get("status", {}).get("conditions", []))


def not_ready(cluster: Cluster) -> list[str]:
    """Names of what is not ready yet: nodes, DNS. Raises httpx.HTTPError when the API server does not answer."""
    with controlplane.client(cluster) as api:
        nodes = {item["metadata"]["name"]: item for item in api.get("/api/v1/nodes").raise_for_status().json()["items"]}
        waiting = [f"node {each.name}" for each in cluster.nodes if each.name not in nodes or not _conditions(nodes[each.name], "Ready")]
        dns = api.get("/apis/apps/v1/namespaces/kube-system/deployments/coredns")
        if dns.status_code != 200 or not dns.json().get("status", {}).get("readyReplicas"):
            waiting.append("coredns")
        account = api.get("/api/v1/namespaces/default/serviceaccounts/default")
        if account.status_code != 200:
            waiting.append("service accounts")
    return waiting


def _wait_nodes(cluster: Cluster, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    waiting = ["the API server"]
    while waiting:
        try:
            waiting = not_ready(cluster)
        except httpx.HTTPError as error:
            waiting = [f"the API server ({type(error).__name__})"]
        if not waiting:
            return
        dead = [name for name in processes.recorded(cluster) if processes.running_pid(cluster, name) is None]
        if dead or time.monotonic() > deadline:
            name = dead[0] if dead else f"kubelet-{cluster.nodes[0].name}"
            raise ClusterError(
                f"{cluster.name}: got {', '.join(waiting)} not ready{f', {name} dead' if dead else ''}, want all ready; "
                f"the log of {name} ends:\n{processes.tail(cluster, name)}"
            )
        time.sleep(0.2)


def down(cluster: Cluster) -> None:
    """Remove every process, mount, namespace, cgroup, link and file of the cluster. Raises ClusterError when something stays."""
    order = ("kubelet", "provisioner", "kube-", "containerd", "registry", "etcd")
    names = processes.recorded(cluster)
    names.sort(key=lambda name: next((rank for rank, prefix in enumerate(order) if name.startswith(prefix)), len(order)))
    with ThreadPoolExecutor(4) as pool:
        for prefix in order:
            list(pool.map(lambda name: processes.stop(cluster, name), [name for name in names if name.startswith(prefix)]))
    for each in cluster.nodes:
        _end_containers(each)
        cgroups.remove(each)
    node.remove_mounts(cluster)
    network.remove(cluster)
    left = [*network.leftovers(cluster), *(f"cgroup {each.cgroup}" for each in cluster.nodes if cgroups.exists(each))]
    if left:
        raise ClusterError(f"{cluster.name}: got {', '.join(left)} left over, want nothing; end what holds it and run down again")
    shutil.rmtree(cluster.state_dir)


def _end_containers(each: node.Node, timeout_s: float = 10.0) -> None:
    """Shims outlive containerd by design, and containers their shims; both are found through our cgroups and our paths."""
    deadline = time.monotonic() + timeout_s
    while victims := cgroups.pids(each) | shims(each):
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise ClusterError(f"{each.name}: got processes {sorted(victims)} that do not end, want none; look at them with ps")
        time.sleep(0.1)


def shims(each: node.Node) -> set[int]:
    """containerd's shims in this node's network namespace."""
    try:
        namespace = Path("/run/netns", each.netns).stat().st_ino
    except FileNotFoundError:
        return set()
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns" / "net").stat().st_ino == namespace and b"containerd-shim" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def status(cluster: Cluster) -> list[tuple[str, str]]:
    """(component, state) for every process and node."""
    rows = [
        (name, f"running, process {pid}" if (pid := processes.running_pid(cluster, name)) else "DEAD; run up to repair")
        for name in processes.recorded(cluster)
    ]
    try:
        waiting = not_ready(cluster)
    except httpx.HTTPError as error:
        waiting = [f"API server: {type(error).__name__}"]
    return [*rows, ("cluster", "ready" if not waiting else f"not ready: {', '.join(waiting)}")]
