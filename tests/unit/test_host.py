"""Where a cluster cannot run, one line says why and what to do."""

import os
from pathlib import Path

import pytest

from devcluster import cgroups, host
from devcluster.layout import ClusterError


def test_a_machine_without_the_cgroups_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    v1 = [["/sys/fs/cgroup/all", "cgroup", "rw,cpu,cpuset,pids,devices,freezer,blkio"]]
    monkeypatch.setattr(cgroups, "_mounts", lambda: v1)
    monkeypatch.setattr(os.path, "ismount", lambda path: False)
    with pytest.raises(
        ClusterError, match=r"/sys/fs/cgroup: got no controllers memory, want them for the nodes' limits; .*use your own cluster"
    ):
        host.check()


def test_of_the_unified_hierarchy_only_what_the_kubelet_wants_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "_mounts", lambda: [[str(tmp_path), "cgroup2", "rw,nsdelegate"]])
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    assert cgroups.missing() == []
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    assert cgroups.missing() == ["cpuset", "memory", "pids"]


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.sys, "platform", "darwin")
    with pytest.raises(ClusterError, match=r"platform: got darwin, want linux; use your own cluster: make up CONTEXT=name"):
        host.check()


def test_missing_packages_without_apt_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ClusterError, match=r"packages: got none of .*runc.*want them; install them"):
        host.ensure_packages()


def test_too_few_inotify_instances_are_named_before_anything_starts() -> None:
    with pytest.raises(ClusterError, match=r"fs.inotify.max_user_instances: got \d+ with \d+ free, want 1200000 free for 100000 nodes"):
        host.check_watches(100_000)
    host.check_watches(0)
