"""The policy pack in the real engine: it passes what we render, and stops what violates a rule."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import ROOT
from infra.analysis import preview
from infra.analysis.policy.rules import RULES
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError

PACK = str(ROOT / "infra" / "analysis" / "policy")
PROGRAM = '''
import asyncio

import pulumi
import pulumi_kubernetes as k8s

directory = pulumi.Config("tiny").require("renderTo")
known = not pulumi.runtime.is_dry_run()


def later(value):
    """A value that is known after the update, as the digest of an image that is built by it."""

    def done(result):
        future = asyncio.Future()
        future.set_result(result)
        return future

    return pulumi.Output(set(), done(value if known else None), done(known))


pod = {"hostNetwork": True, "containers": [{"name": "main", "image": later("example.com/x:latest")}]}
k8s.apps.v1.Deployment(
    "tiny",
    metadata={"name": "tiny", "namespace": "n"},
    spec={"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}},
    opts=pulumi.ResourceOptions(provider=k8s.Provider("rendering", render_yaml_to_directory=directory)),
)
'''
UNPINNED = "Deployment/tiny: got image example.com/x:latest, want one by digest; set images.refs"
HOST = "Deployment/tiny: got hostNetwork, want pods that share nothing with their node; remove it"


def messages(text: str) -> str:
    """What the engine said, its line breaks and indentation removed."""
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("stack", preview.STACKS)
def test_both_stacks_pass(stack: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    told = preview.render(stack, tmp_path / "out", tmp_path, [PACK])
    assert told.packs == {"modelfleet": "1.0.0"}


def test_a_configuration_that_violates_a_rule_is_stopped_with_our_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(stack: str) -> dict[str, Any]:
        config = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"]
        config["modelfleet:storage"]["shared"]["provisioner"] = "kubernetes.io/nfs"
        return config

    monkeypatch.setattr(preview, "stack_config", wrong)
    (tmp_path / "out").mkdir()
    with pytest.raises(CliError) as refusal:
        preview.render("dev", tmp_path / "out", tmp_path, [PACK])
    wanted = "StorageClass/shared-models: got provisioner kubernetes.io/nfs, want a CSI driver that makes volumes; name one"
    assert wanted in messages(str(refusal.value))
    assert "[mandatory] claims-can-be-provisioned" in messages(str(refusal.value))


@pytest.fixture
def tiny(tmp_path: Path) -> PulumiCli:
    """A program of another team, with a host network, and an image whose name is known after the update."""
    program = tmp_path / "program"
    program.mkdir()
    runtime = {"name": "python", "options": {"toolchain": "pip", "virtualenv": str(ROOT / ".venv")}}
    (program / "Pulumi.yaml").write_text(json.dumps({"name": "tiny", "runtime": runtime}))
    (program / "__main__.py").write_text(PROGRAM)
    (tmp_path / "out").mkdir()
    cli = PulumiCli(stack="test", state_dir=tmp_path, program=program, env={"HOME": str(tmp_path)})
    cli.ensure_stack()
    cli.write_config({"tiny:renderTo": str(tmp_path / "out")})
    return cli


def test_a_preview_fails_for_what_is_known_and_says_what_it_could_not_judge(tiny: PulumiCli) -> None:
    with pytest.raises(CliError) as refusal:
        tiny.preview(policy_packs=[PACK])
    said = messages(str(refusal.value))
    assert HOST in said
    assert "[mandatory] images-cannot-move" not in said
    assert "[advisory] undecided" in said
    assert "images_cannot_move: got values that are known after the update" in said


def test_the_update_judges_everything(tiny: PulumiCli) -> None:
    with pytest.raises(CliError) as refusal:
        tiny.up(policy_packs=[PACK])
    said = messages(str(refusal.value))
    assert HOST in said
    assert UNPINNED in said
    assert "undecided" not in said


def test_the_engine_knows_every_rule() -> None:
    names = {rule.__name__.replace("_", "-") for rule in RULES}
    assert len(names) == len(RULES) >= 28
