"""State files: those that an engine killed while it writes leaves behind, and what is in one after a `destroy`."""

import json
from pathlib import Path

import pytest

from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError
from infra.engine.recorded import Recorded, objects
from tests.golden.engine import Engine


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
