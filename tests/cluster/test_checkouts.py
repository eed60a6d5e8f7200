"""A cluster is that of its checkout and of its user: what another checkout, another HOME and a user without root find of it, and may do.

In a state directory of this file's own, so that clusters have the names that `make up` gives, and nobody else's is looked at.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from devcluster import cgroups, controlplane, layout, network, processes
from devcluster import cluster as embedded
from devcluster.cache import cache_root
from devcluster.layout import Cluster
from tests import machine
from tests.cluster.kube import eventually
from tests.cluster.test_zz_lifecycle import ours

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
DOWN = ("infra.lifecycle", "down", "--stack", "dev", "--context", "")
"""The command of `make down`."""
NOBODY = 65534
HALF = """
import sys
from devcluster import footprint, host, layout, network
footprint.begin()
network.ensure(layout.create(sys.argv[1] or layout.default_name(), 1, host.taken_networks()))
"""
"""What an `up` that was killed early leaves: a record, links and network namespaces."""
AS_NOBODY = f"""
import importlib, locale, os, sys
from infra.lifecycle import embedded
main = importlib.import_module(sys.argv[1]).main
# From here on this user cannot read a Python that lies in root's home.
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.exit(main(*sys.argv[2:] and [sys.argv[2:]]))
"""


def run(*arguments: str, tree: Path = ROOT, env: Mapping[str, str] = MappingProxyType({})) -> "subprocess.CompletedProcess[str]":
    """Python with these arguments, in a checkout."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tree, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


def up(tree: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "devcluster", "up", "--nodes", "1"], cwd=tree, stderr=subprocess.PIPE, text=True)


def checkout(target: Path) -> Path:
    """The program without its tests, as git has it."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", ".", ":!tests"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def second_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("second").resolve())


@pytest.fixture(scope="module")
def both(second_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Cluster]]:
    """The cluster of this checkout, and that of the second one; both began at once, before either had a record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("home")))
        before = machine.snapshot()
        try:
            with up(ROOT) as first, up(second_tree) as second:
                said = [each.communicate(timeout=180)[1] for each in (first, second)]
            assert (first.returncode, second.returncode) == (0, 0), said
            found = {cluster.checkout: cluster for cluster in layout.recorded()}
            assert found.keys() == {ROOT, second_tree}
            yield found[ROOT], found[second_tree]
        finally:
            with ExitStack() as ends:
                for path in layout.clusters_dir().glob("*/cluster.json"):
                    ends.callback(embedded.down_named, path.parent.name)
        eventually(lambda: machine.difference(before, machine.snapshot()), lambda found: not found, 30, "the machine is as it was")


@pytest.fixture
def first(both: tuple[Cluster, Cluster]) -> Iterator[Cluster]:
    """The first one's cluster, which is the same in the end: the test is about somebody else's commands."""
    before = seen(both[0])
    yield both[0]
    assert seen(both[0]) == before
    assert embedded.not_ready(both[0]) == []


def seen(cluster: Cluster) -> dict[str, Any]:
    """What the commands of others could change of a cluster."""
    with controlplane.client(cluster) as api:
        uid = api.get("/api/v1/namespaces/kube-system").raise_for_status().json()["metadata"]["uid"]
    return {
        "record": (cluster.state_dir / "cluster.json").read_text(),
        "processes": {name: processes.running_pid(cluster, name) for name in processes.recorded(cluster)},
        "link": network.owner(cluster),
        "network": network.leftovers(cluster),
        "control groups": cgroups.found(f"{cluster.cgroup_prefix}*"),
        "identity": uid,
    }


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of another HOME; what is made there goes."""
    environment = {"HOME": str(tmp_path / "other"), "XDG_STATE_HOME": "", "XDG_CACHE_HOME": str(cache_root().parent)}
    try:
        yield environment
    finally:
        run("-m", "devcluster", "--name", "modelfleet", "down", env=environment)


def told(cluster: Cluster, said: str) -> str:
    """The command that removes it, as another HOME's `down` says it."""
    before = f"down: there is a cluster in {cluster.state_dir}, of another user or HOME, or without its record; it goes with: "
    (command,) = [line.removeprefix(before) for line in said.splitlines() if line.startswith(before)]
    return command


def test_a_second_checkout_has_a_cluster_of_its_own_which_goes_alone(
    both: tuple[Cluster, Cluster], first: Cluster, second_tree: Path
) -> None:
    second = both[1]
    assert first.name != second.name
    assert {first.subnet, first.fabric_netns, first.host_link}.isdisjoint({second.subnet, second.fabric_netns, second.host_link})
    assert embedded.not_ready(second) == []
    assert seen(first)["identity"] != seen(second)["identity"]
    assert not {str(first.state_dir), str(second.state_dir)} & {*embedded.of_others()}
    done = run("-m", *DOWN, tree=second_tree)
    assert (done.returncode, "down: the embedded cluster and all that it made are gone" in done.stderr) == (0, True), done.stderr
    assert ours(second) == []
    assert not second.state_dir.exists()
    done = run("-m", *DOWN, tree=second_tree)
    assert (done.returncode, "down: nothing is up" in done.stderr) == (0, True), done.stderr


def test_another_home_has_a_cluster_of_the_same_name_and_removes_that_one_alone(first: Cluster, elsewhere: dict[str, str]) -> None:
    made = run("-c", HALF, "", env=elsewhere)
    assert made.returncode == 0, made.stderr
    record = Path(elsewhere["HOME"], ".local", "state", "modelfleet", "clusters", first.name, "cluster.json")
    assert f'"slot": {first.slot},' not in record.read_text()
    # Then the marks on the machine alone say whose is whose.
    record.unlink()
    done = run("-m", *DOWN, env=elsewhere)
    assert (done.returncode, "down: the embedded cluster and all that it made are gone" in done.stderr) == (0, True), done.stderr
    assert not record.parent.exists()
    done = run("-m", *DOWN, env=elsewhere)
    assert (done.returncode, "down: nothing is up" in done.stderr) == (0, True), done.stderr
    assert f"--name {first.name} down" in told(first, done.stderr)


def test_the_command_that_another_home_is_told_removes_that_cluster_alone(first: Cluster, elsewhere: dict[str, str]) -> None:
    made = run("-c", HALF, "half")
    assert made.returncode == 0, made.stderr
    half = layout.load("half")
    assert half is not None
    assert ours(half), "the marks are there, or this test sees nothing"
    command = shlex.split(told(half, run("-m", *DOWN, env=elsewhere).stderr))
    assert command[0] == "sudo"
    done = subprocess.run(command[1:], cwd=ROOT, env=os.environ | elsewhere, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ours(half) == []
    assert not half.state_dir.exists()


def test_a_user_without_root_is_refused_and_changes_nothing(first: Cluster) -> None:
    own = {"HOME": "/nonexistent", "XDG_STATE_HOME": "", "XDG_CACHE_HOME": ""}
    before = machine.snapshot()
    done = run("-c", AS_NOBODY, "devcluster.host", env=own)
    assert done.returncode == 1
    assert "user: got no root, want root for namespaces; run with sudo, or use your own cluster: make up CONTEXT=name" in done.stderr
    done = run("-c", AS_NOBODY, *("infra.lifecycle.__main__", *DOWN[1:]), env=own)
    assert (done.returncode, done.stderr) == (1, "error: user: got no root, want the user that ran make up; run with sudo\n")
    # Who names the other one's state directory may not look into it.
    done = run("-c", AS_NOBODY, *("devcluster.__main__", "--name", first.name, "down"))
    record = first.state_dir / "cluster.json"
    assert (done.returncode, done.stderr) == (1, f"error: {record}: got Permission denied, want to use it; mend that\n")
    eventually(lambda: machine.difference(before, machine.snapshot()), lambda found: not found, 30, "nothing has changed")
