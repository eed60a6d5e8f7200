"""The wheel, installed in an environment of its own: its commands without a cluster, and what it renders beside what was reviewed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from devcluster.toolchain import cache_root
from infra.analysis import preview
from modelfleet import wheel
from tests.golden.test_golden import GOLDEN

UV = str(Path(sys.executable).with_name("uv"))


def uv(*arguments: str) -> None:
    subprocess.run([UV, *arguments], check=True, capture_output=True, cwd="/")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, with the extra, for the machine's own Python. Nothing of this checkout is in that environment."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    uv("venv", "-q", "--python", "/usr/bin/python3", str(environment))
    uv("pip", "install", "-q", "--python", str(environment / "bin" / "python"), f"modelfleet[up] @ {built.as_uri()}")
    return environment / "bin" / "modelfleet"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a user who has nothing but the tools that were built on this machine."""
    cache = cache_root().parent
    for name in [
        each for each in os.environ if each.startswith(("PYTHON", "PULUMI_", "XDG_")) or each in ("VIRTUAL_ENV", "KUBECONFIG", "BASE")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    yield tmp_path / "home"
    assert list((tmp_path / "home").iterdir()) == [], "nothing is kept but in the directory"


def run(command: Path, work: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    work.mkdir(exist_ok=True)
    return subprocess.run([str(command), *arguments], cwd=work, capture_output=True, text=True, timeout=540)


def kept(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in work.glob("Pulumi.*")}


def test_without_the_extra_the_missing_packages_are_one_line_and_try_is_there(built: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    uv("venv", "-q", "--python", "/usr/bin/python3", str(environment))
    uv("pip", "install", "-q", "--no-deps", "--python", str(environment / "bin" / "python"), str(built))
    command = environment / "bin" / "modelfleet"
    done = run(command, tmp_path / "work", "up")
    want = "want those of the extra up; run uvx --from 'FILE.whl[up]' modelfleet up\n"
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: packages: got no ")
    assert done.stderr.endswith(want)
    assert list((tmp_path / "work").iterdir()) == []
    listed = run(command, tmp_path / "work", "--help").stdout
    assert all(f"    {name} " in listed for name in ("try", "up", "down", "preview", "status", "explain")), listed


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("status", 1, "down; run modelfleet up\n"),
        (
            "explain",
            2,
            "error: cluster: got none, want one that runs; run modelfleet up, or name yours: modelfleet explain --context name\n",
        ),
    ],
)
def test_where_nothing_was_begun_they_say_so_and_write_nothing(
    installed: Path, tmp_path: Path, command: str, status: int, says: str
) -> None:
    done = run(installed, tmp_path / "work", command)
    assert done.returncode == status
    # Whatever cluster of somebody else this machine has is said, too.
    assert says in done.stdout + done.stderr
    assert list((tmp_path / "work").iterdir()) == []


def test_a_directory_of_somebody_else_is_left_alone(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "Pulumi.yaml").write_text("name: shop\nruntime: nodejs\n")
    done = run(installed, work, "up")
    want = "want a directory for its own; go to another one"
    assert (done.returncode, done.stderr) == (1, f"error: {work}/Pulumi.yaml: got a project that is not of this command, {want}\n")
    # What is of no stack does not ask whose directory it is.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = run(installed, work, "clean-cache")
    assert (done.returncode, done.stderr) == (0, f"clean-cache: nothing to free in {tmp_path}/cache/modelfleet\n")
    assert [path.name for path in work.iterdir()] == ["Pulumi.yaml"]


def test_a_stack_of_another_directory_is_not_found_here(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path / "work", "status", "--context", "west", "--stack", "prod")
    want = f"want one with a file Pulumi.<stack>.yaml in {tmp_path / 'work'} (none there); correct the name, or go to the directory of its file"
    assert (done.returncode, done.stderr) == (1, f"error: --stack: got 'prod', {want}\n")


def test_its_preview_in_an_empty_directory_is_the_reviewed_rendering(installed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    done = run(installed, work, "preview")
    assert done.returncode == 0, done.stderr
    assert [line.partition(" is new")[0] for line in done.stderr.splitlines() if " is new" in line] == [
        f"modelfleet: {work}/Pulumi.{stack}.yaml" for stack in preview.STACKS
    ]
    for stack in preview.STACKS:
        rendered = {path.name: path.read_text() for path in (work / "build" / "preview" / stack).glob("*.yaml")}
        reviewed = {path.name: path.read_text() for path in (GOLDEN / stack).glob("*.yaml")}
        assert {name: preview.normalized(text) for name, text in rendered.items()} == reviewed
    assert sorted(path.name for path in work.iterdir()) == [".modelfleet", "Pulumi.dev.yaml", "Pulumi.prod.yaml", "Pulumi.yaml", "build"]


def test_the_settings_of_the_directory_are_used_and_kept(installed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    settings = yaml.safe_load((preview.ROOT / "Pulumi.dev.yaml").read_text())
    settings["config"]["modelfleet:apiServer"]["replicas"] = 3
    (work / "Pulumi.west.yaml").write_text(yaml.safe_dump(settings))
    before = kept(work)
    done = run(installed, work, "preview")
    assert done.returncode == 0, done.stderr
    assert "preview: west: " in done.stdout
    assert "preview: dev: " not in done.stdout
    (deployment,) = (work / "build" / "preview" / "west").glob("deployment-api-server.yaml")
    assert yaml.safe_load(deployment.read_text())["spec"]["replicas"] == 3
    assert kept(work) == before | {"Pulumi.yaml": (work / "Pulumi.yaml").read_bytes()}
