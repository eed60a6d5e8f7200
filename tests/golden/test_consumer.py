"""examples/openhands against the real state of both stacks: the contract, through the engine, with the published package."""

import base64
import json
from pathlib import Path

import pytest
import yaml

from infra import ROOT
from infra.analysis import preview
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError
from modelfleet_outputs import parse

KEY = "masked-in-the-rendering"
"""What preview.render gives the stack as its API key."""


@pytest.fixture(scope="module", params=preview.STACKS)
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A rendered stack, and where its state is."""
    work = tmp_path_factory.mktemp(request.param)
    (work / "out").mkdir()
    preview.render(request.param, work / "out", work)
    return request.param, work / request.param


def consumer(fleet: tuple[str, Path], target: Path) -> PulumiCli:
    """The example's stack in the fleet's backend; PYTHONPATH stands for an installed modelfleet-outputs."""
    stack, state = fleet
    package = target / "package"
    package.mkdir()
    (package / "modelfleet_outputs").symlink_to(ROOT / "modelfleet_outputs")
    cli = PulumiCli(
        stack=f"openhands-{stack}",
        state_dir=state,
        program=ROOT / "examples" / "openhands",
        env={"HOME": str(target), "PYTHONPATH": str(package)},
    )
    cli.ensure_stack()
    config = {"fleet": f"organization/modelfleet/{stack}", "namespace": "openhands", "renderTo": str(target)}
    cli.write_config({f"openhands:{key}": value for key, value in config.items()})
    return cli


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
    cli = consumer(fleet, tmp_path)
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
