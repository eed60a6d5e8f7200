"""`make backup` and `make restore` with the real restic, on a stack's directory as Pulumi leaves it, and a real Prometheus."""

import fcntl
import json
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.lifecycle import __main__ as lifecycle
from infra.lifecycle import backup, own_cluster
from tests.service import prometheus
from tests.service.processes import free_port

CATALOG = {"version": 1, "fleet": 1, "models": [{"name": "tiny:1", "digest": "a" * 64}]}
SECRET, PASSPHRASE = "v1:encrypted", "the-passphrase-of-the-stack"
KUBECTL = f"""#!/bin/sh
case "$*" in *' exec statefulset/ollama --container ollama-agent -- cat /models/catalog.json'*) echo '{json.dumps(CATALOG)}' ;;
*) echo 'no such thing' >&2; exit 1 ;;
esac
"""
RESTIC = {"RESTIC_CACHE_DIR", "RESTIC_PASSWORD", "RESTIC_PASSWORD_COMMAND", "RESTIC_PASSWORD_FILE", "RESTIC_REPOSITORY"}


class Machine:
    """One machine's home, with a stack in it."""

    def __init__(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = work / "repository"
        self._work, self._monkeypatch = work, monkeypatch
        program = work / "bin" / "kubectl"
        program.parent.mkdir()
        program.write_text(KUBECTL)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        for name in RESTIC:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("RESTIC_CACHE_DIR", str(work / "cache"))
        self.password("correct")
        monkeypatch.setenv("KUBECONFIG", str(work / "kubeconfig"))
        self.home("first")
        self.cluster("uid-1")

    def password(self, text: str) -> None:
        file = self._work / f"password-{text}"
        file.write_text(text)
        self._monkeypatch.setenv("RESTIC_PASSWORD_FILE", str(file))

    def home(self, name: str) -> None:
        """Another machine, where there is nothing."""
        self._monkeypatch.setenv("XDG_STATE_HOME", str(self._work / name))

    def cluster(self, identity: str) -> None:
        self._monkeypatch.setattr(backup, "cluster_identity", lambda *_: identity)

    @property
    def state(self) -> Path:
        return own_cluster.on_context("west", "dev").state_dir

    def stack(self) -> dict[str, str]:
        """A stack as an update leaves it: file to content."""
        config = {"modelfleet:cluster": {"context": "west", "identity": "uid-1"}, "modelfleet:apiKeys": {"secure": SECRET}}
        files = {
            "state/.pulumi/stacks/modelfleet/dev.json": json.dumps({"version": 3, "checkpoint": {"latest": {"resources": []}}}),
            "passphrase": PASSPHRASE,
            "api-key": "the-first-key-of-all",
            "Pulumi.dev.yaml": yaml.safe_dump({"encryptionsalt": "v1:salt", "config": config}),
        }
        for name, text in files.items():
            path = self.state / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o600)
        self.state.chmod(0o700)
        assert own_cluster.on_context("west", "dev").cli.has_stack(), "this is where Pulumi's state is looked for"
        return files

    def backup(self, *more: str) -> int:
        return lifecycle.main(["backup", "--context", "west", "--to", str(self.repository), *more])

    def restore(self, *more: str) -> int:
        return lifecycle.main(["restore", "--context", "west", "--from", str(self.repository), *more])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def content(directory: Path, names: dict[str, str]) -> dict[str, str]:
    return {name: (directory / name).read_text() for name in names}


def test_everything_is_back_on_another_machine(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    files = machine.stack()
    assert machine.backup() == 0
    said = capsys.readouterr().err
    assert "is a new repository; without its password nobody can read it" in said
    assert "of stack dev; it was read again and is whole" in said
    machine.home("second")
    assert machine.restore() == 0
    said = capsys.readouterr().err
    assert f"restore: tiny:1 was {'a' * 64}" in said
    assert "now run make up" in said
    assert content(machine.state, files) == files
    assert stat.S_IMODE(machine.state.stat().st_mode) == 0o700
    assert {stat.S_IMODE((machine.state / name).stat().st_mode) for name in files} == {0o600}
    assert [path.name for path in machine.state.parent.iterdir()] == ["dev"], "nothing half restored is left"


def test_nothing_of_it_can_be_read_without_the_password(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.stack()
    assert machine.backup() == 0
    kept = b"".join(path.read_bytes() for path in machine.repository.rglob("*") if path.is_file())
    assert len(kept) > 1000
    for text in (PASSPHRASE, SECRET, "the-first-key-of-all", "tiny:1", "passphrase"):
        assert text.encode() not in kept
    machine.home("second")
    machine.password("wrong")
    assert machine.restore() == 1
    assert "restic restore: got 'Fatal: wrong password or no key found'" in capsys.readouterr().err
    assert not machine.state.exists()
    machine.home("first")
    assert machine.backup() == 1
    assert "restic cat: got 'Fatal: wrong password" in capsys.readouterr().err


def test_usage_is_kept_where_a_prometheus_has_it(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine.stack()
    work = tmp_path / "prometheus"
    work.mkdir()
    process, now = {"namespace": "modelfleet", "job": "api-server", "instance": "1"}, time.time()
    asked = {**process, "key": "alice", "model": "m", "status": "200"}
    samples = [("api_server_key_requests_total", asked, float(count), now - 60 + count) for count in range(5)]
    prometheus.remember(work, [*samples, *(("api_server_reserved_bytes", process, 0.0, now - 60 + count) for count in range(5))])
    with prometheus.running(work, prometheus.scraping(f"127.0.0.1:{free_port()}")) as server:
        assert machine.backup("--prometheus", server.url) == 0
    assert "without usage" not in capsys.readouterr().err
    rows = (machine.state / "backup" / "usage.csv").read_text().splitlines()
    assert rows[0].startswith("day,key,model,requests,")
    assert [row.split(",")[1:4] for row in rows[1:]] == [["alice", "m", "4"]]


def test_an_older_snapshot_can_be_named(machine: Machine) -> None:
    machine.stack()
    assert machine.backup() == 0
    (machine.state / "api-key").write_text("another-key")
    assert machine.backup() == 0
    listed = subprocess.run(
        ["restic", "--repo", str(machine.repository), "snapshots", "--json"], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    first, second = (each["short_id"] for each in json.loads(listed))
    for snapshot, key in ((first, "the-first-key-of-all"), (second, "another-key")):
        machine.home(f"at-{snapshot}")
        assert machine.restore("--snapshot", snapshot) == 0
        assert (machine.state / "api-key").read_text() == key


def test_a_stack_that_is_there_is_not_lost(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.stack()
    assert machine.backup() == 0
    (machine.state / "api-key").write_text("newer")
    assert machine.restore() == 1
    assert f"error: restore: got stack dev on west, want none, which would be lost; move {machine.state} aside" in capsys.readouterr().err
    assert (machine.state / "api-key").read_text() == "newer"


def test_an_update_that_runs_is_not_caught_halfway(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.stack()
    with (machine.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert machine.backup() == 1
    assert "got a running update of stack dev, want none" in capsys.readouterr().err


def test_a_damaged_repository_is_noticed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.stack()
    assert machine.backup() == 0
    pack = next(path for path in (machine.repository / "data").rglob("*") if path.is_file())
    whole = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(whole[:10] + bytes([whole[10] ^ 1]) + whole[11:])
    assert machine.backup() == 1
    assert "error: restic check: got" in capsys.readouterr().err


def test_a_snapshot_of_something_else_is_refused(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine.stack()
    assert machine.backup() == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").touch()
    run: dict[str, Any] = {"cwd": other, "check": True, "capture_output": True, "text": True}
    restic = ["restic", "--repo", str(machine.repository)]
    subprocess.run([*restic, "backup", ".", "--tag", "modelfleet,stack=dev"], **run)
    machine.home("second")
    assert machine.restore() == 1
    assert "SNAPSHOT: got one that make backup has not made" in capsys.readouterr().err
    assert not machine.state.exists()


@pytest.mark.parametrize(
    ("missing", "error"),
    [
        ("repository", "error: TO: got nothing, want a restic repository, such as"),
        ("password", "error: RESTIC_PASSWORD_FILE: got nothing, want a file with the repository's password"),
        ("stack", "error: backup: got no stack dev, want one; run make up"),
        ("restic", "error: PATH: got no restic, want it"),
    ],
)
def test_what_is_missing_is_one_line(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str, error: str
) -> None:
    if missing != "stack":
        machine.stack()
    if missing == "password":
        monkeypatch.delenv("RESTIC_PASSWORD_FILE")
    if missing == "restic":
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    to = "" if missing == "repository" else str(machine.repository)
    assert lifecycle.main(["backup", "--context", "west", "--to", to]) == 1
    found = capsys.readouterr().err
    assert found.startswith(error)
    assert found.count("\n") == 1
    assert not machine.repository.exists()
