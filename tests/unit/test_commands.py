"""`make up` and `make down`, as far as no cluster is needed: what goes wrong is one line."""

import errno
import os
from pathlib import Path

import pytest

from infra.lifecycle import __main__ as lifecycle
from infra.lifecycle import own_cluster

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: gone, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: gone, context: {cluster: gone, user: gone}}]
users: [{name: gone}]
"""


class Full:
    """A cluster on a machine whose disk is full."""

    def up(self, _: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/state/ca.pem")


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(lifecycle, "target", lambda *_: Full())
    assert lifecycle.main(["up"]) == 1
    assert capsys.readouterr().err == (
        "error: /var/state/ca.pem: got No space left on device, want to use it; mend that\n"
    )  # fmt: skip


@pytest.mark.parametrize(("command", "context"), [("up", ""), ("up", "west"), ("check", "west")])
def test_a_stack_without_a_file_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, context: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert lifecycle.main([command, "--stack", "nowhere", "--context", context]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: STACK: got 'nowhere', want one with a file Pulumi.<stack>.yaml in "), said
    assert "(dev, prod there)" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["preview"], ["preview", "--context", "west"], ["up", "--context", "west"]])
def test_an_archive_of_tools_is_taken_before_pulumi_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert lifecycle.main([*command, "--tools", "build/tools.tar.gz"]) == 1
    want = "want FILE@sha256:HEX or https://ADDRESS@sha256:HEX; take the line that make tools printed"
    assert capsys.readouterr().err == f"error: TOOLS: got build/tools.tar.gz, {want}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_cluster_is_not_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    """It would be removed: whoever forgets the context must not lose a cluster for it."""
    assert lifecycle.main(["down", "--forget", "--yes"]) == 1
    assert capsys.readouterr().err.startswith("error: FORGET: got it for the embedded cluster, want a CONTEXT whose cluster is gone")


@pytest.mark.parametrize("context", ["gone", "unknown"])
def test_a_cluster_that_answers_no_more_is_forgotten_after_a_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], context: str
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("infra.program.cluster.TIMEOUT_S", 1)
    state = own_cluster.on_context(context, "dev").state_dir
    state.mkdir(parents=True)
    (state / "passphrase").write_text("x")
    command = ["down", "--context", context, "--forget"]
    assert lifecycle.main(command) == 1
    assert "error: down: got no confirmation, want the context's name typed" in capsys.readouterr().err
    assert state.exists()
    assert lifecycle.main([*command, "--yes"]) == 0
    assert f"behind {context} is no cluster; stack dev is to forget" in capsys.readouterr().err
    (aside,) = state.parent.glob("dev.forgotten-*")
    assert (aside / "passphrase").read_text() == "x"
