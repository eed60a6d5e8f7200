"""examples/components through the real engine, with the package installed as a user has it: a whole program of another team."""

import json
from pathlib import Path

import pytest
import yaml

from infra.analysis.policy import rules
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError
from tests import wheel

KEY = "a-key-that-is-long-enough"
CONFIG = {
    "image": "registry.example.com/api-server@sha256:" + 64 * "a",
    "apiKeys": json.dumps([KEY]),
    "model": "qwen3-coder:30b",
    "server": "vllm",
    "serverNamespace": "serving",
    "serverLabels": {"app": "vllm"},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("components")
    wheel.install(wheel.build("components", work), work / "installed")
    return work / "installed"


def program(installed: Path, work: Path, **changes: object) -> PulumiCli:
    rendered = work / "rendered"
    rendered.mkdir()
    cli = PulumiCli(
        stack="prod",
        state_dir=work / "stack",
        program=wheel.ROOT / "examples" / "components",
        env={"HOME": str(work), "PYTHONPATH": str(installed)},
    )
    cli.ensure_stack()
    config = {**CONFIG, "renderTo": str(rendered), **changes}
    cli.write_config({f"door:{key}": value for key, value in config.items() if value is not None})
    return cli


def test_another_teams_program_makes_objects_that_keep_every_rule(installed: Path, tmp_path: Path) -> None:
    cli = program(installed, tmp_path)
    cli.up()
    objects = [yaml.safe_load(path.read_text()) for path in (tmp_path / "rendered").rglob("*.yaml")]
    assert rules.violations(objects) == []
    kinds = sorted(item["kind"] for item in objects)
    expected = [
        "ConfigMap",
        "Deployment",
        "LimitRange",
        "Namespace",
        "NetworkPolicy",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ResourceQuota",
    ]
    assert kinds == [*expected, "Secret", "Service", "ServiceAccount"]
    assert {item["metadata"].get("namespace") for item in objects if item["kind"] != "Namespace"} == {"door"}
    (container,) = next(item for item in objects if item["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == CONFIG["image"]
    (routes,) = (json.loads(entry["value"]) for entry in container["env"] if entry["name"] == "API_SERVER_ROUTES")
    assert routes == {"qwen3-coder:30b": {"url": "http://vllm.serving.svc:8000", "model": "qwen3-coder:30b", "max_in_flight": 16}}
    assert json.loads(cli.run("stack", "output", "--json")) == {"url": "http://api-server.door.svc:8000/v1"}
    assert KEY not in (tmp_path / "stack" / "state" / ".pulumi" / "stacks" / "door" / "prod.json").read_text()


def test_a_missing_setting_is_named(installed: Path, tmp_path: Path) -> None:
    with pytest.raises(CliError, match="door:model"):
        program(installed, tmp_path, model=None).up()
    assert list((tmp_path / "rendered").rglob("*.yaml")) == []
