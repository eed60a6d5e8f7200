"""The machine under a cluster is not changed by it: not while it is up, not by what is killed half-way, not by what is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devcluster import cgroups, footprint, layout, network, node, processes, supervisor
from devcluster import cluster as embedded
from devcluster.layout import CLUSTER_DOMAIN, SERVICE_DNS, Cluster
from tests import declared, machine
from tests.cluster.conftest import NAME
from tests.cluster.kube import eventually

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
ONE = f"{NAME}-m"
"""A cluster of one node, of this file alone."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return declared.path(tmp_path_factory.mktemp("programs"))


@pytest.fixture(autouse=True)
def unchanged(programs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test of this file did, with programs of declared packages alone: after `down` the machine is as it was."""
    monkeypatch.setenv("PATH", programs)
    before = machine.snapshot()
    try:
        yield
    finally:
        embedded.down_named(ONE)
    eventually(lambda: machine.difference(before, machine.snapshot()), lambda found: not found, 30, "the machine is as it was")
    assert not (layout.clusters_dir() / ONE).exists()
    assert not layout.lock_file(ONE).exists()


def start(*more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "devcluster", "--name", ONE, "up", "--nodes", "1", *more]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: "subprocess.Popen[str]") -> str:
    said = process.communicate(timeout=180)[1]
    assert process.returncode == 0, said
    return said


def kill_when(holds: Callable[[], bool]) -> None:
    """Start `up`, and kill it, with all that it waits for, as soon as `holds`."""
    process = start()
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def loaded() -> Cluster:
    found = layout.load(ONE)
    assert found is not None
    return found


def test_a_machine_is_left_as_it_is_while_a_cluster_is_up_which_is_repaired_in_part_and_whole(tmp_path: Path) -> None:
    before = machine.snapshot()
    media, stick = tmp_path / "media", tmp_path / "media" / "stick"
    media.mkdir()
    # As systemd mounts everything; the machine of this test may have no systemd.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(media)], check=True)
    subprocess.run(["mount", "--make-shared", str(media)], check=True)
    stick.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(stick)], check=True)
    try:
        finish(start())
        seen = Path(f"/proc/{processes.running_pid(loaded(), 'kubelet-n1')}/mounts")
        assert f" {stick} " in seen.read_text()
        # Linux removes a directory that is a mount point in another namespace, and takes the mount away with it.
        assert footprint.mounted_elsewhere(Path("/var/lib/kubelet"))
        assert not footprint.mounted_elsewhere(tmp_path)
    finally:
        subprocess.run(["umount", str(stick)], check=True)
    assert f" {stick} " not in seen.read_text(), "a file system that the user unmounted is kept by the node"
    subprocess.run(["umount", str(media)], check=True)
    during = machine.difference(before, machine.snapshot())
    assert during.keys() <= {"mounts", "control groups", "network", "files", "modules"}
    assert all(f"/clusters/{ONE}" in line for line in during["mounts"] if "/run/netns" not in line), during["mounts"]
    assert not [line for line in during["network"] if line.startswith(("- ", "+ nft", "+ ipset"))]
    what_dies_is_started_again_and_long_logs_are_cut(loaded())
    after_a_restart_of_the_machine_up_repairs(loaded())


def what_dies_is_started_again_and_long_logs_are_cut(cluster: Cluster) -> None:
    names = ("kube-scheduler", "etcd", "kubelet-n1", node.runtime_name(cluster.nodes[0]))
    before = {name: processes.running_pid(cluster, name) for name in names}
    for pid in before.values():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    log = processes.log_file(cluster, "registry")
    with log.open("ab") as file:
        file.truncate(11 * 2**20)

    def back() -> bool:
        return all(processes.running_pid(cluster, name) not in (None, pid) for name, pid in before.items())

    eventually(back, bool, 60, "the supervisor has started them again")
    eventually(lambda: embedded.status(cluster)[-1], lambda row: row == ("cluster", "ready"), 90, "the cluster is ready again")
    assert log.stat().st_size < 2**20 < log.with_suffix(".log.1").stat().st_size


def test_a_node_with_crio_leaves_the_machine_as_it_is_and_stays_what_it_is() -> None:
    before = machine.snapshot()
    finish(start("--runtime", "crio"))
    during = machine.difference(before, machine.snapshot())
    assert not [line for line in during["files"] if "containerd" in line]
    what_dies_is_started_again_and_long_logs_are_cut(loaded())
    other = start("--runtime", "containerd")
    assert "--runtime: got containerd, want crio as the running cluster" in other.communicate(timeout=60)[1]
    assert other.returncode == 1
    finish(start())
    assert loaded().runtime == "crio"


def after_a_restart_of_the_machine_up_repairs(cluster: Cluster) -> None:
    # What a restart takes: processes, mounts, links, control groups; the state directory stays.
    for name in sorted(processes.recorded(cluster), key=lambda name: name != supervisor.NAME):
        pid = processes.running_pid(cluster, name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
    embedded._end_all(cluster)
    node.remove_mounts(cluster.state_dir)
    network.remove(cluster)
    for each in cluster.nodes:
        cgroups.remove(each)
    finish(start())
    # What the cluster says of its nodes and pods is from before the restart for some seconds; `up` asks what is there now.
    assert network.resolves(cluster.control_plane, SERVICE_DNS, f"kubernetes.default.svc.{CLUSTER_DOMAIN}")
    assert not network.resolves(cluster.control_plane, SERVICE_DNS, f"nothing.default.svc.{CLUSTER_DOMAIN}")
    assert embedded.not_ready(cluster) == []


def test_an_up_that_was_killed_at_three_points_is_finished_by_the_next_or_removed() -> None:
    directory = layout.clusters_dir() / ONE
    kill_when(lambda: (directory / "cluster.json").exists() and Path("/sys/class/net", loaded().host_link).exists())
    kill_when(lambda: (directory / "namespaces" / "n1-mnt").exists())
    embedded.down_named(ONE)
    assert not directory.exists(), "half of a cluster is removed too"
    # Every process of the node is there, and nothing of what they need is applied yet.
    kill_when(lambda: (directory / "pids" / "kube-router-n1.json").exists())
    finish(start())
    assert embedded.not_ready(loaded()) == []


def test_half_of_a_mount_namespace_is_not_taken_for_a_whole_one() -> None:
    """What a kill between its making and its set-up leaves: in it the node's runtime would be the machine's own."""
    footprint.begin()
    cluster = layout.create(ONE, 1)
    network.ensure(cluster)
    n1 = cluster.nodes[0]
    assert node.ensure_mount_namespace(n1)
    assert not node.ensure_mount_namespace(n1), "a whole one stays"
    subprocess.run(["umount", str(n1.mount_namespace)], check=True)
    subprocess.run(["unshare", f"--mount={n1.mount_namespace}", "true"], check=True)
    assert node.ensure_mount_namespace(n1)
    inside = ["nsenter", f"--mount={n1.mount_namespace}", "stat", "-c", "%i", "/run/containerd"]
    found = subprocess.run(inside, capture_output=True, text=True, check=True).stdout.strip()
    assert found == str((n1.directory / "run-containerd").stat().st_ino)


def test_two_at_once_make_one_cluster_and_an_empty_record_is_no_reason_to_leave_it() -> None:
    first, second = start(), start()
    said = [finish(first), finish(second)]
    assert sum("ready after" in each for each in said) == 1
    assert sum("waits for process" in each for each in said) >= 1
    cluster = loaded()
    record = cluster.state_dir / "cluster.json"
    record.write_text("")
    done = subprocess.run([sys.executable, "-m", "devcluster", "--name", ONE, "status"], cwd=ROOT, capture_output=True, text=True)
    assert "got no readable record, want slot and node_count; run make down, which removes what is left" in done.stderr
    assert embedded.down_named(ONE)


def test_a_lost_record_in_a_state_directory_with_a_space_and_links_of_others_with_names_like_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a home"))
    foreign, others = "mfabc-host", embedded.of_others()
    subprocess.run(["ip", "link", "add", foreign, "type", "bridge"], check=True)
    try:
        finish(start())
        assert embedded.of_others() == others
        shutil.rmtree(loaded().pid_dir)
        (loaded().state_dir / "cluster.json").unlink()
        assert embedded.down_named(ONE), "no record at all: the link's alias says whose it is"
        assert Path("/sys/class/net", foreign).exists()
    finally:
        subprocess.run(["ip", "link", "del", foreign], check=True)
