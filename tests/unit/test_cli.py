"""An update is never silent, and ends at once when what it waits for cannot come."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import cli
from infra.cli import CliError, PulumiCli, Watched


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A `pulumi` that says one thing and then nothing, until it is interrupted."""
    monkeypatch.setattr(cli, "QUIET_S", 0.2)
    program = tmp_path / "bin" / "pulumi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\ntrap 'echo interrupted; exit 130' INT\necho ' +  a created (1s)'\nwhile :; do sleep 0.05; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path / "state"


def stack(state: Path, said: list[Watched]) -> PulumiCli:
    looks: Iterator[Watched] = iter(said)
    return PulumiCli(stack="dev", state_dir=state, watch=lambda: next(looks))


def test_a_quiet_update_says_what_it_waits_for_and_ends_with_a_lasting_cause(quiet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = stack(quiet, [Watched(), Watched(["waiting: Pod/a: got x"]), Watched(["waiting: y"], "Pod/b: got y, want z; do it")])
    started = time.monotonic()
    with pytest.raises(CliError, match=r"^Pod/b: got y, want z; do it$"):
        given.run("up", progress=True)
    assert time.monotonic() - started < 10
    said = capsys.readouterr().err.splitlines()
    assert said[:4] == ["pulumi: +  a created (1s)", "pulumi: up goes on", "waiting: Pod/a: got x", "waiting: y"]
