"""examples/openhands and examples/team against real states: the contract, through the engine, with the published package."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from infra import ROOT
from infra.analysis import preview
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError
from modelfleet_outputs import parse

OPENHANDS, TEAM = ROOT / "examples" / "openhands", ROOT / "examples" / "team"
EXPORTED = json.loads((ROOT / "tests" / "contract" / "outputs-v1.json").read_text())
KEY = "masked-in-the-rendering"
"""What preview.render gives the stack as its API key."""


@pytest.fixture(scope="module", params=preview.STACKS)
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A rendered stack, and where its state is."""
    work = tmp_path_factory.mktemp(request.param)
    (work / "out").mkdir()
    preview.render(request.param, work / "out", work)
    return request.param, work / request.param


def program(directory: Path, stack: str, state: Path, target: Path, config: Mapping[str, str]) -> PulumiCli:
    """A stack of that program in a backend; PYTHONPATH stands for an installed modelfleet-outputs."""
    package = target / "package"
    package.mkdir(exist_ok=True)
    if not (package / "modelfleet_outputs").exists():
        (package / "modelfleet_outputs").symlink_to(ROOT / "modelfleet_outputs")
    cli = PulumiCli(stack=stack, state_dir=state, program=directory, env={"HOME": str(target), "PYTHONPATH": str(package)})
    cli.ensure_stack()
    cli.write_config(config)
    return cli


def consumer(stack: str, of: str, state: Path, target: Path) -> PulumiCli:
    config = {"fleet": of, "namespace": "openhands", "renderTo": str(target)}
    return program(OPENHANDS, stack, state, target, {f"openhands:{key}": value for key, value in config.items()})


def test_the_outputs_of_both_stacks_are_of_the_contract_and_keys_are_secret(fleet: tuple[str, Path], tmp_path: Path) -> None:
    stack, state = fleet
    cli = PulumiCli(stack=stack, state_dir=state, env={"HOME": str(tmp_path)})
    outputs = parse(json.loads(cli.run("stack", "output", "fleet", "--json")))
    assert outputs.url == "http://api-server.modelfleet.svc:8000/v1"
    assert outputs.runtime_class == {"dev": None, "prod": "nvidia"}[stack]
    assert outputs.node_port == {"dev": 30080, "prod": None}[stack]
    assert json.loads(cli.run("stack", "output", "--json"))["apiKeys"] == "[secret]"
    assert json.loads(cli.run("stack", "output", "keysByName", "--show-secrets", "--json")) == {"masked": KEY}
    assert KEY not in (state / "state" / ".pulumi" / "stacks" / "modelfleet" / f"{stack}.json").read_text()
    assert json.loads(cli.run("stack", "output", "apiKeys", "--show-secrets", "--json")) == [KEY]


def test_openhands_is_configured_from_the_fleet_or_told_why_not(fleet: tuple[str, Path], tmp_path: Path) -> None:
    stack, state = fleet
    cli = consumer(f"openhands-{stack}", f"organization/modelfleet/{stack}", state, tmp_path)
    if stack == "dev":
        with pytest.raises(CliError) as refusal:
            cli.up()
        assert "openhands:model: got smollm2:135m with 4096 tokens of context, want 16384 or more; raise" in str(refusal.value)
        assert "Traceback" not in str(refusal.value)
        assert not list(tmp_path.rglob("*.yaml"))
        return
    cli.up()
    objects = {item["kind"]: item for item in map(yaml.safe_load, (path.read_text() for path in tmp_path.rglob("*.yaml")))}
    assert objects["ConfigMap"]["data"] == {
        "LLM_MODEL": "openai/qwen3-coder:30b",
        "LLM_BASE_URL": "http://api-server.modelfleet.svc:8000/v1",
    }
    secret = objects["Secret"]
    keys = secret.get("stringData") or {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    assert keys == {"LLM_API_KEY": KEY}
    assert KEY not in (state / "state" / ".pulumi" / "stacks" / "openhands" / f"{cli.stack}.json").read_text()


EVERY_KEY = f"""
import pulumi

pulumi.export("fleet", {EXPORTED!r})
pulumi.export("apiKeys", pulumi.Output.secret(["{KEY}", "the-key-of-another-team"]))
pulumi.export("keysByName", pulumi.Output.secret({{"search-team": "{KEY}", "other-team": "the-key-of-another-team"}}))
"""


def test_a_program_that_refers_to_its_teams_stack_has_no_other_key_not_even_in_its_state(tmp_path: Path) -> None:
    every, state = tmp_path / "every", tmp_path / "backend"
    every.mkdir()
    (every / "__main__.py").write_text(EVERY_KEY)
    (every / "Pulumi.yaml").write_text((OPENHANDS / "Pulumi.yaml").read_text().replace("../../.venv", str(ROOT / ".venv")))
    program(every, "every", state, tmp_path, {}).up()
    config = {"modelfleet-team:fleet": "organization/openhands/every", "modelfleet-team:key": "nobody"}
    with pytest.raises(CliError, match="modelfleet-team:key: got nobody, want one of other-team, search-team; correct it") as refusal:
        program(TEAM, "search", state, tmp_path, config).up()
    assert "Traceback" not in str(refusal.value)
    team = program(TEAM, "search", state, tmp_path, {**config, "modelfleet-team:key": "search-team"})
    team.up()
    assert parse(json.loads(team.run("stack", "output", "fleet", "--json"))) == parse(EXPORTED)
    assert json.loads(team.run("stack", "output", "keysByName", "--show-secrets", "--json")) == {"search-team": KEY}
    assert json.loads(team.run("stack", "output", "--json"))["apiKeys"] == "[secret]"
    used = consumer("openhands", "organization/modelfleet-team/search", state, tmp_path)
    used.up()
    exported = used.run("stack", "export", "--show-secrets")
    assert KEY in exported
    assert "the-key-of-another-team" not in exported
