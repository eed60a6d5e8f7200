"""What dies is started again, ever more slowly while it keeps dying; logs stay short."""

import errno
import itertools
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from devcluster import layout, processes, supervisor
from devcluster.processes import Process
from devcluster.supervisor import Supervisor
from tests.cluster.kube import eventually


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> layout.Cluster:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return layout.create("one", 1)


def end(cluster: layout.Cluster, name: str) -> None:
    pid = processes.running_pid(cluster, name)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_component_comes_back_with_its_command_and_environment(cluster: layout.Cluster) -> None:
    process = Process(name="a", argv=["sh", "-c", 'echo "$WORD"; exec sleep 60'], env={"WORD": "hello"})
    assert processes.ensure(cluster, process)
    assert not processes.ensure(cluster, process)
    end(cluster, "a")
    log = processes.log_file(cluster, "a")
    log.unlink()
    assert Supervisor(cluster).look() == ["a"]
    assert not processes.ensure(cluster, process), "the same as before, so there is nothing to repair"
    eventually(log.read_text, lambda said: said.split() == ["hello"], 30, "its word")
    end(cluster, "a")


def test_one_that_keeps_dying_is_started_ever_more_slowly(cluster: layout.Cluster) -> None:
    processes.ensure(cluster, Process(name="a", argv=["sleep", "60"]))
    clock = Clock()
    watcher = Supervisor(cluster, clock)
    starts: list[float] = []
    for _ in range(200):
        if processes.running_pid(cluster, "a") is not None:
            end(cluster, "a")
        if watcher.look():
            starts.append(clock.now)
        clock.now += 1
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses[:6] == [1, 2, 4, 8, 16, 30]
    assert set(pauses[6:]) == {30}


def test_a_changed_file_starts_its_reader_again(cluster: layout.Cluster, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("one")
    process = Process(name="a", argv=["sleep", "60"], files=[config])
    assert processes.ensure(cluster, process)
    config.write_text("two")
    assert processes.ensure(cluster, process)
    end(cluster, "a")


def test_a_stopped_component_stays_stopped(cluster: layout.Cluster) -> None:
    processes.ensure(cluster, Process(name="a", argv=["sleep", "60"]))
    processes.stop(cluster, "a")
    assert Supervisor(cluster).look() == []


def test_a_record_that_says_nothing_stops_no_other(cluster: layout.Cluster) -> None:
    cluster.pid_dir.mkdir()
    (cluster.pid_dir / "broken.json").write_text("{")
    processes.ensure(cluster, Process(name="a", argv=["sleep", "60"]))
    end(cluster, "a")
    assert Supervisor(cluster).look() == ["a"]
    end(cluster, "a")


def test_a_long_log_becomes_the_old_one_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * (supervisor.LOG_BYTES + 1))
        supervisor.rotate(log)
        writer.write(b"after\n")
    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "a.log.1").stat().st_size == supervisor.LOG_BYTES + 1
    supervisor.rotate(log)
    assert log.read_bytes() == b"after\n"


def test_whoever_watched_the_store_starts_again_with_it(cluster: layout.Cluster) -> None:
    """What they know may be newer than what the store has."""
    for name in ("etcd", "kube-apiserver", "kubelet-n1", "containerd-n1"):
        processes.ensure(cluster, Process(name=name, argv=["sleep", "60"]))
    runtime = processes.running_pid(cluster, "containerd-n1")
    end(cluster, "etcd")
    watcher = Supervisor(cluster)
    assert {*watcher.look(), *watcher.look()} == {"etcd", "kube-apiserver", "kubelet-n1"}
    assert processes.running_pid(cluster, "containerd-n1") == runtime
    for name in ("etcd", "kube-apiserver", "kubelet-n1", "containerd-n1"):
        end(cluster, name)


def test_a_process_whose_record_cannot_be_written_is_ended(cluster: layout.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk; it would hold the port of the next one."""
    spawned: list[int] = []
    spawn = processes._spawn

    def noted(argv: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
        spawned.append(spawn(argv, log, env))
        return spawned[-1]

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(processes, "_spawn", noted)
    monkeypatch.setattr(processes, "write", full)
    with pytest.raises(OSError, match="No space left"):
        processes.ensure(cluster, Process(name="a", argv=["sleep", "60"]))
    os.waitpid(spawned[0], 0)
    assert processes.start_time(spawned[0]) is None
