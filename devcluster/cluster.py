"""Bring a cluster up, down, and say how it is. `up` is also the repair: it starts whatever is not there."""

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from devcluster import (
    addons,
    cgroups,
    controlplane,
    footprint,
    host,
    network,
    node,
    oci,
    packages,
    pki,
    processes,
    supervisor,
    system_images,
    toolchain,
)
from devcluster.cache import locked
from devcluster.layout import (
    CLUSTER_DOMAIN,
    MAX_NODES,
    REGISTRY,
    SERVICE_DNS,
    Cluster,
    ClusterError,
    RecordError,
    Runtime,
    clusters_dir,
    create,
    load,
    lock_file,
    recorded,
    save,
)
from devcluster.oci import Image
from modelfleet.place import WORK

TOOLS = ("kubernetes", "kubectl", "etcd", "containerd", "coredns", "kube-router", "local-path-provisioner")


_RESTARTS = 4
"""So often a component may end while a cluster comes up; one that is configured wrongly always ends."""
LINKS = Path("/sys/class/net")
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tools(runtime: Runtime) -> tuple[str, ...]:
    """What a cluster with that container runtime needs."""
    return (*TOOLS, "crio") if runtime == "crio" else TOOLS


def binaries(runtime: Runtime = "containerd") -> Path:
    return toolchain.ensure(tools(runtime))


def prepare(tools: Sequence[str], *, agreed: bool) -> None:
    """Look at the machine, then install what is missing, also to compile those of `tools` that are not there. Raises ClusterError.

    `agreed`: the user wants no question.
    """
    compiled = [tool for tool in toolchain.missing(tools) if not tool.wheel]
    host.check(host.Needs(building_gib=toolchain.disk_gib(compiled)))
    wanted = [*packages.RUN, *(packages.COMPILE if compiled else ())]
    if "crio" in tools:
        wanted += [*packages.CRIO, *(packages.COMPILE_CRIO if any(tool.name == "crio" for tool in compiled) else ())]
    packages.ensure(wanted, agreed=agreed)


def up(name: str, node_count: int, timeout_s: float = 180.0, runtime: Runtime = "containerd") -> Cluster:
    """A ready cluster of that name: nodes Ready, DNS answering. Starts only what is missing.

    Call `prepare` first on a machine that may lack something. Raises ClusterError.
    """
    programs = binaries(runtime)
    # On a new machine these take minutes, which no process of a half-started cluster should have to wait out.
    images = [system_images.pause(), system_images.coredns(programs), system_images.helper()]
    with locked(lock_file(name), f"cluster {name}"):
        return _up(name, node_count, runtime, programs, images, timeout_s)


def _up(name: str, node_count: int, runtime: Runtime, tools: Path, images: list[Image], timeout_s: float) -> Cluster:
    started = time.monotonic()
    existing = load(name)
    if existing is None:
        host.check_watches(node_count)
    footprint.begin()
    cluster = create(name, node_count, host.taken_networks(), runtime)
    if cluster.checkout != WORK:
        say(f"devcluster: {name} was made by {cluster.checkout} and is taken over by {WORK}")
        save(cluster := replace(cluster, checkout=WORK))
    pki.ensure(cluster)
    network.ensure(cluster)
    controlplane.write_config(cluster)
    cluster.shared_dir.mkdir(exist_ok=True)
    began: list[str] = []

    def start(items: Sequence[processes.Process]) -> None:
        began.extend(item.name for item in items if processes.ensure(cluster, item))

    if processes.running_pid(cluster, processes.STORE) is None:
        processes.end_readers(cluster)
    start(controlplane.processes(cluster, tools))
    for each in cluster.nodes:
        cgroups.ensure(each)
        if node.ensure_mount_namespace(each):
            _stop_node_processes(cluster, each.name)
        node.write_config(each, tools, images[0].reference)
        if processes.running_pid(cluster, node.runtime_name(each)) is None:
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
    # An `up` that was killed may have started every process, and applied nothing or half.
    if began or not addons.are_applied(cluster):
        addons.apply(cluster, tools, addons.manifests(images[1].reference))
    start(addons.provisioner_processes(cluster, tools, images[2].reference))
    start([supervisor.process(cluster)])
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
    name = node.runtime_name(each)
    while not node.runtime_socket(each).exists():
        if processes.running_pid(each.cluster, name) is None or time.monotonic() > deadline:
            log = processes.tail(each.cluster, name)
            raise ClusterError(f"{name}: got no socket, want a running container runtime; its log ends:\n{log}")
        time.sleep(0.05)


def _wait_registry(cluster: Cluster, timeout_s: float = 15.0) -> None:
    """Asked from a node, where pulls come from."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with network.inside(cluster.control_plane.netns):
                if httpx.get(f"http://{REGISTRY}/v2/", timeout=2.0, trust_env=False).status_code == 200:
                    return
        except httpx.HTTPError:
            pass
        if processes.running_pid(cluster, "registry") is None or time.monotonic() > deadline:
            log = processes.tail(cluster, "registry")
            raise ClusterError(
                f"registry: got no answer at {REGISTRY} from node {cluster.control_plane.name}, want one; run up again. "
                f"Its log ends:\n{log}"
            )
        time.sleep(0.1)


def push(cluster: Cluster, images: Sequence[Image]) -> None:
    """Make images available to every node under their own names."""
    with network.inside(cluster.fabric_netns):
        for image in images:
            oci.push(image, REGISTRY, "embedded")


def _conditions(item: dict[str, dict[str, list[dict[str, str]]]], kind: str) -> bool:
    return any(condition["type"] == kind and condition["status"] == "True" for condition in item.get("status", {}).get("conditions", []))


def not_ready(cluster: Cluster) -> list[str]:
    """Names of what is not ready yet: nodes, DNS. Raises httpx.HTTPError when the API server does not answer."""
    with controlplane.client(cluster) as api:
        nodes = {item["metadata"]["name"]: item for item in api.get("/api/v1/nodes").raise_for_status().json()["items"]}
        leases = {item["metadata"]["name"]: item for item in api.get(_LEASES).raise_for_status().json()["items"]}
        waiting = [
            f"node {each.name}"
            for each in cluster.nodes
            if each.name not in nodes
            or not _conditions(nodes[each.name], "Ready")
            or not _renewed(cluster, each.name, leases.get(each.name, {}))
        ]
        account = api.get("/api/v1/namespaces/default/serviceaccounts/default")
        if account.status_code != 200:
            waiting.append("service accounts")
    # The Deployment says of its pods what was true before a restart of the machine.
    return (
        waiting if network.resolves(cluster.control_plane, SERVICE_DNS, f"kubernetes.default.svc.{CLUSTER_DOMAIN}") else [*waiting, "DNS"]
    )


def _renewed(cluster: Cluster, node_name: str, lease: dict[str, Any]) -> bool:
    """Whether the kubelet that runs has reported: what its node says may be from before a restart of the machine."""
    renewed = lease.get("spec", {}).get("renewTime")
    started = processes.started_at(cluster, f"kubelet-{node_name}")
    return renewed is not None and started is not None and datetime.fromisoformat(renewed).timestamp() >= started


def _wait_nodes(cluster: Cluster, timeout_s: float) -> None:
    """What ends meanwhile is started again, as the supervisor would do: a kubelet ends when its runtime answers too late."""
    deadline = time.monotonic() + timeout_s
    ended: Counter[str] = Counter()
    waiting = ["the API server"]
    while waiting:
        try:
            waiting = not_ready(cluster)
        except httpx.HTTPError as error:
            waiting = [f"the API server ({type(error).__name__})"]
        if not waiting:
            return
        dead = [name for name in processes.recorded(cluster) if processes.running_pid(cluster, name) is None]
        ended.update(dead)
        if any(ended[name] > _RESTARTS for name in dead) or time.monotonic() > deadline:
            name = dead[0] if dead else f"kubelet-{cluster.nodes[0].name}"
            raise ClusterError(
                f"{cluster.name}: got {', '.join(waiting)} not ready{f', {name} dead' if dead else ''}, want all ready; "
                f"the log of {name} ends:\n{processes.tail(cluster, name)}"
            )
        for name in dead:
            time.sleep(0.5 * ended[name])
            processes.restart(cluster, name)
        time.sleep(0.2)


def down(cluster: Cluster) -> None:
    """Remove every process, mount, namespace, cgroup, link and file of the cluster. Raises ClusterError when something stays."""
    with locked(lock_file(cluster.name), f"cluster {cluster.name}"):
        _down(cluster)
        footprint.end()
        lock_file(cluster.name).unlink(missing_ok=True)
    footprint.tidy()


def find(name: str) -> Cluster | None:
    """The cluster of that name: as it is recorded, or, where its record is lost, as what is left on the machine says."""
    try:
        return load(name) or _by_marks(name)
    except RecordError:
        return _by_marks(name)


def down_named(name: str) -> bool:
    """`down` for a name, also where the record is lost or half-written. Returns whether there was anything. Raises ClusterError."""
    cluster = find(name)
    if cluster is not None:
        down(cluster)
        return True
    rest = clusters_dir() / name
    if not rest.exists():
        return False
    with locked(lock_file(name), f"cluster {name}"):
        say(f"devcluster: {rest} has no readable record, and nothing of it runs; removing the directory")
        node.remove_mounts(rest)
        shutil.rmtree(rest)
        footprint.end()
        lock_file(name).unlink(missing_ok=True)
    footprint.tidy()
    return True


def _by_marks(name: str) -> Cluster | None:
    """From the alias of the link, or else from the names of the control groups."""
    for link in LINKS.glob("mf*-host"):
        slot = link.name.removeprefix("mf").removesuffix("-host")
        if not slot.isdigit():
            continue
        for count in range(1, MAX_NODES + 1):
            cluster = Cluster(name=name, slot=int(slot), node_count=count)
            if network.owner(cluster) == cluster.host_alias:
                return cluster
    for group in cgroups.found(f"modelfleet-*-{name}-n[1-{MAX_NODES}]"):
        slot = group.removeprefix("modelfleet-").partition("-")[0]
        if slot.isdigit() and group[len(f"modelfleet-{slot}-") : -len("-n1")] == name:
            cluster = Cluster(name=name, slot=int(slot), node_count=MAX_NODES)
            # The cluster of another user may have the same name.
            if network.owner(cluster) in ("", cluster.host_alias):
                return cluster
    return None


def of_others() -> list[str]:
    """State directories of clusters on this machine that other users have, or this one with another HOME, or that lost their records."""
    aliases = [path.read_text().strip().split(" ", 3) for path in LINKS.glob("mf*-host/ifalias")]
    ours = {str(cluster.state_dir) for cluster in recorded()}
    return sorted(words[3] for words in aliases if len(words) == 4 and words[0] == "modelfleet" and words[3] not in ours)


def _down(cluster: Cluster) -> None:
    processes.stop(cluster, supervisor.NAME)
    order = ("kubelet", "provisioner", "kube-", "containerd", "crio", "registry", "etcd")
    names = processes.recorded(cluster)
    names.sort(key=lambda name: next((rank for rank, prefix in enumerate(order) if name.startswith(prefix)), len(order)))
    with ThreadPoolExecutor(4) as pool:
        for prefix in order:
            # The API server would wait for its watchers, and all that it could lose goes anyhow.
            list(pool.map(lambda name: processes.stop(cluster, name, 1.0), [name for name in names if name.startswith(prefix)]))
    _end_all(cluster)
    for each in cluster.nodes:
        cgroups.remove(each)
    node.remove_mounts(cluster.state_dir)
    network.remove(cluster)
    left = [*network.leftovers(cluster), *(f"cgroup {each.cgroup}" for each in cluster.nodes if cgroups.exists(each))]
    if left:
        raise ClusterError(f"{cluster.name}: got {', '.join(left)} left over, want nothing; end what holds it and run down again")
    if cluster.state_dir.exists():
        shutil.rmtree(cluster.state_dir)


def _end_all(cluster: Cluster, timeout_s: float = 20.0) -> None:
    """End what no record names: shims outlive containerd by design, containers their shims, and a lost record its process.

    All of it is in the cluster's control groups or network namespaces.
    """
    deadline = time.monotonic() + timeout_s
    while victims := network.processes(cluster).union(*(cgroups.pids(each) for each in cluster.nodes)):
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            processes.reap(pid)
        if time.monotonic() > deadline:
            raise ClusterError(f"{cluster.name}: got processes {sorted(victims)} that do not end, want none; look at them with ps")
        time.sleep(0.1)


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
