"""Where a cluster cannot run, one line says why and what to do, before anything is asked or changed."""

import ipaddress
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from devcluster import cgroups, host, layout, packages
from devcluster.layout import ClusterError
from devcluster.toolchain import cache_root

OTHERWISE = r"use make try, or your own cluster: make up CONTEXT=name"


@pytest.fixture(autouse=True)
def good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which everything is right; the path is where its /proc is."""
    proc = tmp_path / "proc"
    (proc / "sys/net/bridge").mkdir(parents=True)
    (proc / "cpuinfo").write_text("flags : sse4_2 avx2\n")
    (proc / "filesystems").write_text("nodev\toverlay\n")
    monkeypatch.setattr(host, "_PROC", proc)
    monkeypatch.setattr(host.sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-18-amd64")
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "12"})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cgroups, "missing", list)
    monkeypatch.setattr(cgroups, "unusable", str)
    monkeypatch.setattr(host, "_MEMORY_GIB", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return proc


NOTHING = host.Needs(cache_gib=0.0, state_gib=0.0)


def problems(needs: host.Needs = NOTHING) -> str:
    with pytest.raises(ClusterError) as caught:
        host.check(needs)
    return str(caught.value)


def test_a_good_machine_passes() -> None:
    host.check(NOTHING)


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.sys, "platform", "darwin")
    assert problems() == f"platform: got darwin, want linux; {OTHERWISE}"


def test_everything_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch, good: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "ubuntu", "VERSION_ID": "24.04"})
    monkeypatch.setattr(platform, "release", lambda: "5.10.0-8-arm64")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(cgroups, "missing", lambda: ["memory"])
    monkeypatch.setattr(host, "_MEMORY_GIB", 10_000.0)
    assert [line.partition(", want")[0] for line in problems().splitlines()] == [
        "architecture: got aarch64",
        "user: got no root",
        "distribution: got ubuntu 24.04",
        "kernel: got 5.10.0-8-arm64",
        f"memory: got {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "/sys/fs/cgroup: got no controllers memory",
    ]


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("cpuinfo", "flags : sse4_2\n", "processor: got none of AVX2, want it for the engine llama.cpp; use make try"),
        ("filesystems", "ext4\n", "kernel: got no overlay file system, want it for containers; run a kernel that has it"),
    ],
)
def test_what_processor_and_kernel_lack_is_named(good: Path, monkeypatch: pytest.MonkeyPatch, path: str, content: str, said: str) -> None:
    monkeypatch.setattr(host, "_loadable", lambda module: False)
    (good / path).write_text(content)
    assert problems().startswith(said)


def test_a_module_that_cannot_be_loaded_is_named(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good / "sys/net/bridge").rmdir()
    host.check(NOTHING) if host._loadable("br_netfilter") else None
    monkeypatch.setattr(host, "_loadable", lambda module: False)
    assert problems().startswith("kernel: got no br_netfilter, want it for network policies; run a kernel that has the module")


def test_disk_is_added_up_where_cache_and_state_share_one(tmp_path: Path) -> None:
    said = problems(host.Needs(cache_gib=10_000.0, state_gib=5_000.0))
    assert f" GiB free at {tmp_path}, want 15000.0 GiB; free some, or move XDG_CACHE_HOME and XDG_STATE_HOME" in said


def test_what_cache_and_cluster_hold_already_is_not_wanted_again() -> None:
    def wanted(needs: host.Needs) -> float:
        return float(problems(needs).partition("want ")[2].partition(" GiB")[0])

    needs = host.Needs(cache_gib=10_000.0, state_gib=5_000.0, building_gib=10_000.0)
    held = cache_root() / "tools" / "one"
    held.parent.mkdir(parents=True)
    with held.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2**28)
    (cache_root() / "go-build").mkdir()
    (held.parent / "link").symlink_to(held)
    assert wanted(needs) == pytest.approx(25_000.0 - 0.25, abs=0.1)
    (layout.clusters_dir() / layout.default_name()).mkdir(parents=True)
    assert wanted(needs) == pytest.approx(20_000.5 - 0.25, abs=0.1)
    # However much the cache holds, something is asked for: not all of it is of this version.
    assert wanted(host.Needs(cache_gib=0.6, building_gib=10_000.0)) == pytest.approx(10_001.0, abs=0.1)


def test_a_group_of_a_container_is_no_place_for_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "unusable", lambda: "a group of a container with processes in it")
    assert "got a group of a container with processes in it, want the root of the hierarchy; run outside of the container" in problems()


def test_of_the_unified_hierarchy_only_what_the_kubelet_wants_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "_mounts", lambda: [[str(tmp_path), "cgroup2", "rw,nsdelegate"]])
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    assert cgroups.missing() == []
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    assert cgroups.missing() == ["cpuset", "memory", "pids"]
    assert cgroups.unusable() == ""
    (tmp_path / "cgroup.type").write_text("domain\n")
    (tmp_path / "cgroup.procs").write_text("1\n")
    assert cgroups.unusable() == "a group of a container with processes in it"


def test_a_controller_that_another_group_passes_on_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    (tmp_path / "user.slice").mkdir()
    (tmp_path / "user.slice" / "cgroup.subtree_control").write_text("memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    cgroups.withdraw(["cpu", "memory"])
    assert (tmp_path / "cgroup.subtree_control").read_text() == "-cpu"


def test_missing_packages_are_named_and_never_installed_without_a_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(packages, "missing", lambda names: ["ipset", "runc"])
    monkeypatch.setattr(packages, "apt", lambda *arguments, **_: ran.append(arguments))
    with pytest.raises(
        ClusterError, match=r"packages: got none of ipset runc, want them; run again with YES=1, or apt-get install ipset runc"
    ):
        packages.ensure(packages.RUN, agreed=False)
    assert ran == []
    packages.ensure(packages.RUN, agreed=True)
    assert ran[-1] == ("install", "-qq", "-y", "--no-install-recommends", "ipset", "runc")


def test_missing_packages_without_apt_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ClusterError, match=r"packages: got none of .*runc.*want them; install them"):
        packages.ensure(packages.RUN, agreed=True)


def test_without_a_terminal_there_is_no_question() -> None:
    """A question that nobody sees would wait for ever."""
    program = "from devcluster import packages as p; p.missing = lambda names: ['ipset']; p.ensure(p.RUN, agreed=False)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert "[y/N]" not in done.stderr
    assert "packages: got none of ipset, want them; run" in done.stderr


def test_too_few_inotify_instances_are_named_before_anything_starts() -> None:
    with pytest.raises(ClusterError, match=r"fs.inotify.max_user_instances: got \d+ with \d+ free, want 1200000 free for 100000 nodes"):
        host.check_watches(100_000)
    host.check_watches(0)


def test_a_network_that_a_vpn_routes_is_left_to_it() -> None:
    """Some VPN clients answer names with addresses of 198.18.0.0/16."""
    made = layout.create("beside-a-vpn", 1, [ipaddress.IPv4Network("198.18.0.0/16")])
    assert made.subnet.startswith("198.19.")
    with pytest.raises(
        ClusterError, match=r"network: got no free /24 of 198.18.0.0/15 \(routes to 198.18.0.0/15, 1 clusters\), want one; end the VPN"
    ):
        layout.create("without-room", 1, [ipaddress.IPv4Network("198.18.0.0/15")])


def test_routes_of_the_machine_are_read_but_for_those_to_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = '[{"dst": "default"}, {"dst": "0.0.0.0/1"}, {"dst": "198.18.0.0/16"}, {"dst": "192.0.2.7"}, {"type": "broadcast", "dst": "192.0.2.255"}]'
    done = subprocess.CompletedProcess([], 0, stdout=routes)
    monkeypatch.setattr(host.subprocess, "run", lambda *_, **__: done)
    assert [str(network) for network in host.taken_networks()] == ["192.0.2.7/32", "198.18.0.0/16"]
