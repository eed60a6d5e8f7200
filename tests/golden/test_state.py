"""State files that an engine killed while it writes leaves behind."""

from pathlib import Path

import pytest

from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError


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
