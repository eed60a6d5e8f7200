"""State files: those that an engine killed while it writes leaves behind, and what is in one after a `destroy`."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError
from infra.engine.recorded import Recorded, objects
from infra.lifecycle import backup
from infra.lifecycle.deployment import Deployment
from tests.golden.engine import Engine

STACK = "pulumi:pulumi:Stack"


def test_half_written_metadata_of_a_state_file_does_not_lock_the_stack_out(tmp_path: Path) -> None:
    cli = PulumiCli(stack="dev", state_dir=tmp_path, env={"HOME": str(tmp_path)})
    cli.ensure_stack()
    cli.write_config({})
    assert list(tmp_path.rglob("dev.json")), "the state is where it is looked for below"
    assert list(tmp_path.rglob("*.attrs")) == []
    left = cli._checkpoint.with_name("dev.json.attrs")
    left.touch()
    with pytest.raises(CliError, match="EOF"):
        cli.run("stack", "export")
    cli._recover()
    cli.run("stack", "export")
    assert not left.exists()


def test_a_stack_that_moves_to_another_cluster_keeps_its_secrets_and_forgets_its_objects(tmp_path: Path) -> None:
    made = Deployment(stack="dev", context="west", kubeconfig=str(tmp_path / "kubeconfig"), state_dir=tmp_path / "old")
    made.cli.ensure_stack()
    made.cli.write_config({"modelfleet:cluster": {"context": "west", "identity": "uid-1", "namespace": "fleet"}})
    made.cli.run("config", "set", "--secret", "modelfleet:apiKeys", stdin="a-key")
    state = json.loads(made.cli.run("stack", "export"))
    state["deployment"]["resources"] = [{"urn": "urn:pulumi:dev::modelfleet::pulumi:pulumi:Stack::modelfleet-dev", "type": STACK}]
    made.cli.run("stack", "import", stdin=json.dumps(state))
    assert json.loads(made.cli.run("stack", "export"))["deployment"]["resources"]
    # As a backup is restored: somewhere else, with the same files.
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    moved = dataclasses.replace(made, context="east", state_dir=tmp_path / "new")
    backup._move(moved, "uid-2")
    assert json.loads(moved.cli.run("stack", "export"))["deployment"].get("resources", []) == []
    assert moved.cli.read_config()["modelfleet:cluster"] == {"context": "east", "identity": "uid-2", "namespace": "fleet"}
    assert moved.cli.run("config", "get", "modelfleet:apiKeys").strip() == "a-key"
    assert made.cli.run("config", "get", "modelfleet:cluster"), "the other one is as it was"


def test_destroy_leaves_what_down_says_that_it_leaves(tmp_path: Path) -> None:
    engine = Engine("prod", tmp_path)

    def recorded() -> list[Recorded]:
        return objects(json.loads(engine.cli.run("stack", "export"))["deployment"]["resources"])

    engine.deploy()
    before = recorded()
    stay = [each for each in before if each.stays]
    assert {"Namespace/modelfleet", "PersistentVolumeClaim/shared-models"} <= {each.name for each in stay} < {each.name for each in before}
    engine.cli.destroy(exclude_protected=True)
    assert recorded() == stay
