"""What may change in place, what may be replaced, and what is refused because data would go: asked of the real engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import ROOT
from infra.analysis import preview
from infra.engine.changes import DataLossError, ImpossibleError, Plan, refuse_data_loss, refuse_the_impossible
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError
from tests.golden.engine import Engine

LARGER = {"dev": {"shared": "3Gi", "hot": "2Gi"}, "prod": {"shared": "1400Gi", "hot": "200Gi"}}
"""Sizes that the quota of the stack allows, too."""
SMALLER = {"dev": "1Gi", "prod": "500Gi"}


@pytest.fixture(scope="module", params=preview.STACKS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    made = Engine(request.param, tmp_path_factory.mktemp(request.param))
    made.deploy()
    return made


def changed(planned: Plan) -> dict[str, str]:
    """Jobs left out: they run anew when their work changes, and hold nothing."""
    return {step.object: step.op for step in planned.steps if step.kind != "Job"}


def with_tier(stack: str, tier: str, **values: Any) -> dict[str, Any]:
    storage = preview.stack_config(stack)["modelfleet:storage"]
    return {"storage": {tier: {**storage[tier], **values}}}


def test_replaced_storage_classes_leave_every_claim_alone(engine: Engine) -> None:
    tiers = [with_tier(engine.stack, tier, parameters={"a": "b"})["storage"] for tier in ("shared", "hot")]
    planned = engine.planned({"storage": {**tiers[0], **tiers[1]}})
    assert changed(planned) == {"StorageClass/shared-models": "replace", "StorageClass/local-nvme": "replace"}
    refuse_data_loss(planned, ())


def test_a_larger_shared_claim_grows_in_place(engine: Engine) -> None:
    planned = engine.planned(with_tier(engine.stack, "shared", size=LARGER[engine.stack]["shared"]))
    assert changed(planned) == {"PersistentVolumeClaim/shared-models": "update"}
    refuse_data_loss(planned, ())
    refuse_the_impossible(planned, ())


def test_a_smaller_shared_claim_is_refused(engine: Engine) -> None:
    planned = engine.planned(with_tier(engine.stack, "shared", size=SMALLER[engine.stack]))
    size = preview.stack_config(engine.stack)["modelfleet:storage"]["shared"]["size"]
    with pytest.raises(ImpossibleError) as refusal:
        refuse_the_impossible(planned, ())
    assert str(refusal.value) == (
        f"PersistentVolumeClaim/shared-models: got {SMALLER[engine.stack]}, want at least the {size} that it has: no claim shrinks; "
        "set its size back"
    )


def test_classes_whose_fields_cannot_change_are_replaced_and_nothing_else_is(engine: Engine) -> None:
    if engine.stack == "prod":
        planned = engine.planned({"gpu": {"handler": "other", "priority": 2_000_000}})
        assert changed(planned) == {
            "RuntimeClass/nvidia": "replace",
            "PriorityClass/gpu-priority": "replace",
            "PriorityClass/gateway-priority": "replace",
            "PriorityClass/gpu-batch-priority": "replace",
        }
    else:
        planned = engine.planned({"storage": {"retain": True}})
        classes = {name: op for name, op in changed(planned).items() if name.startswith("StorageClass/")}
        assert classes == {"StorageClass/shared-models": "replace", "StorageClass/local-nvme": "replace"}
        assert {name for name, op in changed(planned).items() if op != "update"} == set(classes)
    refuse_data_loss(planned, ())
    refuse_the_impossible(planned, ())


def test_another_size_of_the_local_copies_is_refused_where_they_would_go(engine: Engine) -> None:
    planned = engine.planned(with_tier(engine.stack, "hot", size=LARGER[engine.stack]["hot"]))
    of_fleet, of_server = copies = ["StatefulSet/ollama", "StatefulSet/model-server"]
    assert changed(planned) == dict.fromkeys(copies, "replace")
    if engine.stack == "prod":
        # Retained claims stay when their StatefulSet goes, and keep their size.
        refuse_data_loss(planned, ())
        with pytest.raises(ImpossibleError) as impossible:
            refuse_the_impossible(planned, ())
        for name in copies:
            assert f"{name}: got other volumeClaimTemplates, which stop all its replicas" in str(impossible.value)
        refuse_the_impossible(planned, copies)
        return
    with pytest.raises(DataLossError) as refusal:
        refuse_data_loss(planned, ())
    assert sorted(str(refusal.value).splitlines()) == sorted(
        f"{name}: got a change that deletes it and its replicas' volumes "
        "(spec.volumeClaimTemplates[0].spec.resources.requests.storage cannot change in place), want it kept; "
        f"undo the change, or copy what you need and run make up ALLOW_DATA_LOSS={name}"
        for name in copies
    )
    with pytest.raises(DataLossError, match=of_server):
        refuse_data_loss(planned, [of_fleet])
    refuse_data_loss(planned, copies)


def test_another_namespace_is_refused(engine: Engine) -> None:
    if engine.stack == "prod":
        # The claim is protected there: the engine itself refuses, also for those who run pulumi up.
        with pytest.raises(CliError, match='PersistentVolumeClaim::storage-claim"\nas it is currently marked for protection'):
            engine.planned({"cluster": {"namespace": "elsewhere"}})
        return
    planned = engine.planned({"cluster": {"namespace": "elsewhere"}})
    with pytest.raises(DataLossError) as refusal:
        refuse_data_loss(planned, ())
    lines = str(refusal.value).splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == [
        "Namespace/modelfleet",
        "PersistentVolumeClaim/prometheus",
        "PersistentVolumeClaim/shared-models",
        "StatefulSet/model-server",
        "StatefulSet/ollama",
    ]
    [metrics] = [line for line in lines if line.startswith("PersistentVolumeClaim/prometheus")]
    assert "deletes it and the metrics on its volume" in metrics


PROGRAM = """
import os
import pulumi
import pulumi_kubernetes as k8s
import components.storage
from components import Storage, StorageArgs, TierArgs

name = os.environ["FLEET_STORAGE"]
aliases = []
if name != "storage":
    # What a rename of the component in a release looks like: another type, another name, and both old ones as an alias.
    components.storage.type_token = lambda _: "modelfleet:index:Vault"
    if os.environ.get("FLEET_ALIAS"):
        aliases = [pulumi.Alias(name="storage", type_="modelfleet:index:Storage")]
provider = k8s.Provider("cluster", render_yaml_to_directory=os.environ["FLEET_TARGET"])
tier = TierArgs(provisioner="example.com/csi", size="1Gi")
Storage(
    name,
    StorageArgs(namespace="fleet", hot=tier, shared=tier, retain=False),
    pulumi.ResourceOptions(providers=[provider], aliases=aliases),
)
"""


def test_a_component_renamed_with_an_alias_keeps_its_objects(tmp_path: Path) -> None:
    program, target = tmp_path / "program", tmp_path / "out"
    program.mkdir()
    target.mkdir()
    (program / "__main__.py").write_text(PROGRAM)
    project = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
    project["runtime"]["options"]["virtualenv"] = str(ROOT / ".venv")
    # This program has none of the sections.
    del project["config"]
    (program / "Pulumi.yaml").write_text(yaml.safe_dump(project))
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "FLEET_TARGET": str(target)}

    def cli(**variables: str) -> PulumiCli:
        return PulumiCli(stack="dev", program=program, state_dir=tmp_path / "state", env=environment | variables)

    def ids(pulumi: PulumiCli) -> set[str]:
        state = json.loads(pulumi.run("stack", "export"))["deployment"]["resources"]
        return {resource["id"] for resource in state if resource["type"].startswith("kubernetes:")}

    first = cli(FLEET_STORAGE="storage")
    first.ensure_stack()
    first.write_config({})
    first.up()
    before = ids(first)
    assert len(before) == 3
    with pytest.raises(DataLossError, match=r"PersistentVolumeClaim/shared-models: got a change that deletes it"):
        refuse_data_loss(cli(FLEET_STORAGE="vault").preview(), ())
    renamed = cli(FLEET_STORAGE="vault", FLEET_ALIAS="1")
    assert renamed.preview().steps == []
    renamed.up()
    assert ids(renamed) == before
    assert "modelfleet:index:Vault" in renamed.run("stack", "export")
