"""The wheel: what it carries, where it lays out a user's directory, and the words in which its commands speak."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.images import CONTEXTS, content_tag
from devcluster import toolchain
from infra import ROOT
from infra.lifecycle.arguments import COMMANDS, parser
from infra.lifecycle.own_cluster import state_directory
from modelfleet import commands, environment, project, wheel
from modelfleet.report import UserError
from modelfleet.words import Words
from tests.unit.test_make import TARGETS

WORDS = Words(parser("modelfleet"), COMMANDS, project.PROGRAM)
SOURCES = [path for name in ("infra", "devcluster", "images", "components", "modelfleet_outputs") for path in (ROOT / name).rglob("*.py")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    wheel.lay_out(target)
    return target / "modelfleet" / "tree"


def test_it_carries_what_git_has_of_the_program(tree: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "--", *wheel.CARRIED], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    wanted = {name for name in listed.splitlines() if not name.startswith(("docs/site/", "docs/pictures/")) and (ROOT / name).exists()}
    assert wanted - {path.relative_to(tree).as_posix() for path in tree.rglob("*")} == set()


def test_images_and_tools_have_the_keys_that_they_have_in_a_checkout(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So whatever one of them has built, the other takes from the cache or the registry."""
    assert {image: content_tag(tree, image) for image in CONTEXTS} == {image: content_tag(ROOT, image) for image in CONTEXTS}
    code = "from devcluster import toolchain; from images import embedded; import json; print(json.dumps("
    code += "[{tool.name: toolchain.key(tool) for tool in toolchain.TOOLCHAIN}, [embedded._tree_key(embedded.ROOT / each) for each in"
    code += " [*embedded.SERVICES.values(), 'model_sync']], str(embedded.ROOT)]))"

    def keys(*path: Path) -> list[Any]:
        environment = {"PYTHONPATH": ":".join(map(str, path)), "HOME": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    carried, own = keys(tree, tree.parent.parent), keys(ROOT)
    assert carried[:2] == own[:2]
    assert [carried[2], own[2]] == [str(tree), str(ROOT)]
    assert len(own[0]) == len(toolchain.TOOLCHAIN)


def test_the_extra_has_the_tested_versions_and_try_none_of_its_packages() -> None:
    extra, light, tested = (
        dict(environment.pins(path.read_text())) for path in (wheel.UP_LOCK, environment.LOCK, ROOT / "requirements.lock")
    )
    assert {name: version for name, version in extra.items() if tested.get(name) != version} == {}
    assert extra.keys() >= {"pulumi", "pulumi-kubernetes", "kubernetes", "httpx", "cryptography", "pyyaml"}
    assert not light.keys() & {"pulumi", "pulumi-kubernetes", "kubernetes", "httpx", "cryptography", "pyyaml"}
    assert not extra.keys() & {"pytest", "ruff", "openai"}


def written(work: Path) -> dict[str, str]:
    return {path.relative_to(work).as_posix(): path.read_text() for path in work.rglob("*") if path.is_file() and not path.is_symlink()}


def test_an_empty_directory_gets_what_pulumi_and_its_user_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project.lay_out(tmp_path, ["dev"], WORDS.of)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".modelfleet", "Pulumi.dev.yaml", "Pulumi.yaml"]
    assert f"{tmp_path}/Pulumi.dev.yaml is new: the settings of stack dev, which are yours" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "Pulumi.dev.yaml").read_text()) == yaml.safe_load((ROOT / "Pulumi.dev.yaml").read_text())
    made, own = (yaml.safe_load((where / "Pulumi.yaml").read_text()) for where in (tmp_path, ROOT))
    assert (tmp_path / made.pop("main")).resolve() == ROOT
    assert (tmp_path / made["runtime"]["options"].pop("virtualenv")).resolve() == Path(sys.prefix).resolve()
    assert (tmp_path / project.PROGRAM / "__main__.py").exists()
    del own["runtime"]["options"]["virtualenv"]
    assert made == own
    (schema,) = re.findall(r"\$schema=(\S+)", (tmp_path / "Pulumi.dev.yaml").read_text())
    assert (tmp_path / schema).samefile(ROOT / "docs" / "stack.schema.json")
    # What is to be committed is the same on every machine.
    committed = {name: text for name, text in written(tmp_path).items() if not name.startswith(".modelfleet/")}
    assert not any(str(place) in text for text in committed.values() for place in (tmp_path, ROOT, sys.prefix))
    assert (tmp_path / ".modelfleet" / ".gitignore").read_text() == "*\n"


def test_a_later_wheel_changes_what_is_ours_and_nothing_of_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project.lay_out(tmp_path, ["dev"], WORDS.of)
    capsys.readouterr()
    fresh = written(tmp_path)
    (tmp_path / "Pulumi.yaml").write_text(fresh["Pulumi.yaml"] + "# of an older version\n")
    (tmp_path / "Pulumi.dev.yaml").write_text("config: {}\n")
    (tmp_path / "Pulumi.west.yaml").write_text("config: {}\n")
    (tmp_path / project.PROGRAM).unlink()
    (tmp_path / project.PROGRAM).symlink_to("/gone")
    project.lay_out(tmp_path, ["dev"], WORDS.of)
    assert written(tmp_path) == fresh | {"Pulumi.dev.yaml": "config: {}\n", "Pulumi.west.yaml": "config: {}\n"}
    assert (tmp_path / project.PROGRAM).resolve() == ROOT
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wanted", [[], ["nowhere"], ["../dev"]])
def test_without_a_stack_nothing_is_written(tmp_path: Path, wanted: list[str]) -> None:
    project.lay_out(tmp_path, wanted, WORDS.of)
    assert list(tmp_path.iterdir()) == []


def test_a_project_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: shop\nruntime: nodejs\n")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/Pulumi.yaml: got a project that is not of this command, want a directory")):
        project.lay_out(tmp_path, ["dev"], WORDS.of)
    assert written(tmp_path) == {"Pulumi.yaml": "name: shop\nruntime: nodejs\n"}


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere but where nothing is.
    monkeypatch.setattr(commands, "WORK", tmp_path / "gone")
    with pytest.raises(UserError) as refusal:
        commands._lay_out(["dev"], WORDS)
    got = "got No such file or directory, want to keep the stack's files there; go to a directory of yours"
    assert str(refusal.value) == f"{tmp_path}/gone/Pulumi.dev.yaml: {got}"


@pytest.mark.parametrize(
    ("given", "begun"),
    [
        (["up"], ["dev"]),
        (["up", "--context", "west", "--stack", "prod"], ["prod"]),
        (["check", "--context", "west"], ["dev"]),
        (["preview"], ["dev", "prod"]),
        (["preview", "--context", "west"], ["dev"]),
        (["restore", "--context", "west"], []),
        (["down"], []),
        (["status"], []),
        (["explain"], []),
    ],
)
def test_commands_that_one_begins_with_bring_settings(
    given: list[str], begun: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "WORK", tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PULUMI_BACKEND_URL", raising=False)
    assert commands.begun(parser("modelfleet").parse_args(given)) == begun


def test_a_stack_that_is_there_already_is_not_given_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own are in another directory: an update with those of the wheel would undo them."""
    monkeypatch.setattr(commands, "WORK", tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PULUMI_BACKEND_URL", raising=False)
    up = parser("modelfleet").parse_args(["up", "--context", "a/b"])
    assert commands.begun(up) == ["dev"]
    state_directory("a/b", "dev").mkdir(parents=True)
    assert commands.begun(up) == []
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("PULUMI_BACKEND_URL", "s3://states")
    assert commands.begun(up) == []


def test_a_directory_with_stacks_previews_those(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "WORK", tmp_path)
    (tmp_path / "Pulumi.west.yaml").touch()
    assert commands.begun(parser("modelfleet").parse_args(["preview"])) == []


@pytest.mark.parametrize("command", ["up", "status"])
def test_a_checkout_has_make_for_that(command: str) -> None:
    done = subprocess.run(["/usr/bin/python3", "-m", "modelfleet", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"error: {command}: got a checkout, want the wheel; run make {command}\n")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("down; run make up", "down; run modelfleet up"),
        ("stop:      make down CONTEXT=kind STACK=prod", "stop:      modelfleet down --context kind --stack prod"),
        ("run make down CONTEXT=a/b.c FORGET=1.", "run modelfleet down --context a/b.c --forget."),
        ("run again with YES=1, or apt-get install x", "run again with --yes, or apt-get install x"),
        ("RUNTIME: got x, want one of y", "--runtime: got x, want one of y"),
        ("PULL_AUTH: got it", "--pull-auth: got it"),
        ("make up TOOLS=build/a.tar.gz@sha256:0a; then", "modelfleet up --tools build/a.tar.gz@sha256:0a; then"),
        ("run make key NAME=…", "run modelfleet key --name …"),
        ("see docs/images.md", "see .modelfleet/program/docs/images.md"),
        ("SSL_CERT_FILE=/x; XDG_STATE_HOME=/y; PATH: got no restic", "SSL_CERT_FILE=/x; XDG_STATE_HOME=/y; PATH: got no restic"),
        ("run make pins; make upper; make up-to-date", "run make pins; make upper; make up-to-date"),
        ("https://example.com/docs/images.md", "https://example.com/docs/images.md"),
    ],
)
def test_messages_speak_of_this_command_line(said: str, meant: str) -> None:
    assert WORDS.of(said) == meant


def test_whatever_a_message_says_to_run_can_be_run() -> None:
    """Each `make …` of the sources, in the words of the wheel, is a command with options that the parser takes."""
    line = re.compile(r"make [a-z][a-z-]*(?: [A-Z_]+=(?:\{[^}]*\}|[^\s;,)`\"'{]+)+)*")
    found = {re.sub(r"\{[^}]*\}", "x", each) for path in SOURCES for each in line.findall(path.read_text())}
    ours = {each for each in found if each.split()[1] in COMMANDS}
    assert len(ours) >= 15
    for each in ours:
        program, *arguments = WORDS.of(each).split()
        assert program == "modelfleet", each
        parser("modelfleet").parse_args(arguments)


def test_every_command_is_a_target_too() -> None:
    assert COMMANDS.keys() <= {*TARGETS}
