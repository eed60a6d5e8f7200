"""An update is never silent, and ends at once when what it waits for cannot come."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import ROOT
from infra.engine import binaries, progress
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError
from infra.engine.progress import Watched


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A `pulumi` that says nothing until it is interrupted."""
    monkeypatch.setattr(progress, "QUIET_S", 0.2)
    program = tmp_path / "bin" / "pulumi"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n[ $1 = version ] && echo v3.259.0 && exit\ntrap 'echo interrupted; exit 130' INT\nwhile :; do sleep 0.05; done\n"
    )
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
        given._operate("up", watched=True)
    assert time.monotonic() - started < 10
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("pulumi: using")]
    assert said[:3] == ["pulumi: up goes on", "waiting: Pod/a: got x", "waiting: y"]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("v3.258.9", r"pulumi: got version 3.258.9, want 3.259.0 or newer; upgrade it, or take it off the PATH, and ours is built"),
        ("hello", r"pulumi: got 'hello' for its version, want a Pulumi CLI; install it again"),
        ("v3.265.0", ""),
        ("3.300.0-alpha.1", ""),
    ],
)
def test_a_pulumi_on_the_path_is_used_if_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str, error: str
) -> None:
    program = tmp_path / "pulumi"
    program.write_text(f"#!/bin/sh\necho {said}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if error:
        with pytest.raises(CliError, match=error):
            binaries.needs_own_tools()
    else:
        assert not binaries.needs_own_tools()
        assert f"pulumi: using {program}, version {said.removeprefix('v').partition('-')[0]}" in capsys.readouterr().err


def test_the_oldest_engine_is_that_of_the_sdk() -> None:
    wanted = re.search(r'"pulumi==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert wanted is not None
    assert tuple(map(int, wanted[1].split("."))) == binaries.OLDEST
