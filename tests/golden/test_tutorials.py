"""The commands of docs/tutorials/second-team.md, as they stand there, by a shell, against the state of a fleet."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from infra import ROOT
from infra.analysis import preview
from infra.engine.cli import PulumiCli
from tests.golden.test_consumer import KEY
from tests.tutorials import commands, shown

PAGE = ROOT / "docs" / "tutorials" / "second-team.md"
NOT_HERE = ("make key", "kubectl apply")
"""What needs a cluster."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the programs of a team need of one."""
    tree = tmp_path / "checkout"
    for name in ("team", "openhands"):
        (tree / "examples" / name).mkdir(parents=True)
        for file in ("Pulumi.yaml", "__main__.py"):
            (tree / "examples" / name / file).write_bytes((ROOT / "examples" / name / file).read_bytes())
    for name in ("modelfleet_outputs", ".venv"):
        (tree / name).symlink_to(ROOT / name)
    return tree


def test_a_second_team_gets_there_by_the_commands_alone(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    # The fleet, whose one key has this name in a rendering.
    preview.render("prod", tmp_path / "out", tmp_path)
    fleet = PulumiCli(stack="prod", state_dir=tmp_path / "prod", env={"HOME": str(tmp_path)})
    every = [command for command in commands(PAGE) if not command.startswith(NOT_HERE)]
    assert len(every) == len(commands(PAGE)) - 2
    script = "\n".join(every).replace("modelfleet-team:key search-team", "modelfleet-team:key masked")
    environment = {**os.environ, **fleet.environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["bash", "-euc", script], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"url": "http://api-server.modelfleet.svc:8000/v1"' in done.stdout
    assert f'{{\n  "masked": "{KEY}"\n}}' in done.stdout
    seen = next(block for block in shown(PAGE) if "LLM_MODEL" in block)
    assert set(seen.splitlines()) <= set(done.stdout.splitlines()), done.stdout[-3000:]
    assert "kind: Secret" in "".join(
        path.read_text() for path in (checkout / "examples" / "openhands" / "rendered" / "1-manifest").iterdir()
    )


def test_the_page_shows_the_refusal_of_a_wrong_name(checkout: Path) -> None:
    (refusal,) = (block for block in shown(PAGE) if block.startswith("modelfleet-team:key"))
    source = (ROOT / "examples" / "team" / "__main__.py").read_text()
    (template,) = re.findall(r'f"(modelfleet-team:key: .*)"$', source, re.MULTILINE)
    known = "{', '.join(sorted(keys))}"
    assert refusal.strip() == template.replace("{name}", "serch-team").replace(known, "first, search-team")
