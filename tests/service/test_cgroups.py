"""A node's control group in a real hierarchy of version 2, which every machine has somewhere."""

import subprocess
from pathlib import Path

import pytest

from devcluster import cgroups
from devcluster.layout import Cluster


def test_a_group_is_made_its_processes_are_found_and_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    root = next(Path(target) for target, kind, _ in cgroups._mounts() if kind == "cgroup2")
    monkeypatch.setattr(cgroups, "ROOT", root)
    assert cgroups.unified()
    before = cgroups.passed_on()
    node = Cluster(name="cgroup-test", slot=9, node_count=1).nodes[0]
    try:
        cgroups.ensure(node)
        cgroups.ensure(node)
        assert cgroups.exists(node)
        assert set((root / node.cgroup / "cgroup.controllers").read_text().split()) == set(cgroups.offered())
        pod = root / node.cgroup / "kubepods" / "pod"
        pod.mkdir(parents=True)
        with subprocess.Popen(["sleep", "60"]) as process:
            (pod / "cgroup.procs").write_text(str(process.pid))
            assert cgroups.pids(node) == {process.pid}
            process.kill()
    finally:
        cgroups.remove(node)
        cgroups.withdraw(set(cgroups.passed_on()) - set(before))
    assert cgroups.passed_on() == before
    assert not cgroups.exists(node)
