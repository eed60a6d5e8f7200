"""The end of the stack and of the cluster. Runs last: the other tests need both."""

import os
import signal
from pathlib import Path

import pytest

from devcluster import cgroups, node, processes
from devcluster import cluster as embedded
from devcluster.layout import DEFAULT_NAME, Cluster, load
from tests.cluster.conftest import NAME, Stack
from tests.cluster.interruptions import at, finish, killed
from tests.cluster.kube import eventually

pytestmark = pytest.mark.cluster


def ours(cluster: Cluster) -> list[str]:
    """Everything on the machine that bears the cluster's marks: mounts, links, namespaces, cgroups, processes."""
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"/clusters/{cluster.name}/" in line]
    found += [name for name in os.listdir("/sys/class/net") if name.startswith(f"mf{cluster.slot}-")]
    if Path("/run/netns").exists():
        found += [name for name in os.listdir("/run/netns") if name.startswith(f"mf{cluster.slot}-")]
    for hierarchy in cgroups.hierarchies():
        found += [str(path) for path in hierarchy.glob(f"{cluster.cgroup_prefix}n[0-9]")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"/clusters/{cluster.name}/" in command:
            found.append(command)
    return found


@pytest.mark.parametrize("component", ["kube-scheduler", "etcd", "kubelet-n2", "containerd-n1"])
def test_up_repairs_a_killed_component(stack: Stack, component: str) -> None:
    pid = processes.running_pid(stack.cluster, component)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: processes.running_pid(stack.cluster, component), lambda found: found is None, 10, "the component dies")
    embedded.up(NAME, 2)
    assert processes.running_pid(stack.cluster, component) is not None
    assert embedded.status(stack.cluster)[-1] == ("cluster", "ready")


def test_mount_points_of_a_running_cluster_are_not_removed(stack: Stack, tmp_path: Path) -> None:
    """Linux lets a directory go that is a mount point in another namespace, and the mount with it."""
    assert node.mounted_elsewhere(Path("/var/lib/kubelet"))
    assert not node.mounted_elsewhere(tmp_path)


def test_destroy_leaves_nothing_in_the_cluster(stack: Stack) -> None:
    stack.deployment.destroy()
    namespaces = [item["metadata"]["name"] for item in stack.kube.get("namespaces")["items"]]
    assert stack.outputs.namespace not in namespaces
    left = eventually(lambda: stack.kube.get("persistentvolumes")["items"], lambda items: not items, 60, "volumes are deleted")
    assert left == []


KILLED_AT = ("", "storage-claim", "ollama-servers")
"""Resources whose creation is cut off, in their order: the preview before the update, what holds data, what waits. The proof has more."""


def test_an_up_that_was_killed_at_three_points_is_finished_by_the_next(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """From nothing: the stack was destroyed above."""
    pending = [killed(stack, at(stack, name)) for name in KILLED_AT]
    assert None not in pending, f"an update ended before its point: {pending}"
    assert any(pending), "no creation was cut off"
    finish(stack)
    assert "replaced (" not in capsys.readouterr().err, "what was made before the kill is kept"
    stack.deployment.destroy()


def test_down_leaves_nothing_on_the_machine_and_other_clusters_alone(stack: Stack) -> None:
    other = load(DEFAULT_NAME)
    before = ours(other) if other is not None else []
    assert ours(stack.cluster), "the marks are there while the cluster is up, or this test sees nothing"
    embedded.down(stack.cluster)
    assert ours(stack.cluster) == []
    assert not stack.cluster.state_dir.exists()
    assert set(before) <= set(ours(other) if other is not None else [])
