"""Today's program on the state of every release: nothing that holds data goes, names stay, and what changes was reviewed.

After a wanted change: UPDATE_GOLDEN=1 make test TIER=golden, and look at the diff of releases/*/*/changes.txt.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.analysis import preview
from infra.engine.changes import Plan, Step, refuse_data_loss, refuse_the_impossible
from tests.golden.engine import Engine
from tests.golden.releases import Release, kept, prebuilt
from tests.golden.test_golden import GOLDEN

HOLD_DATA = ("Namespace", "PersistentVolume", "PersistentVolumeClaim", "StatefulSet")
"""A StorageClass holds none: its volumes stay when it is replaced (docs/lifecycle.md)."""
HANDED_OVER = {"Deployment/model-server": "StatefulSet/model-server"}
"""What an upgrade deletes because another kind takes its place. The old one holds no data and serves until the new one does: Pulumi deletes
when everything else is there (docs/lifecycle.md)."""
SECRETS_OF_CLIENTS = ("cache-auth",)
"""What clients and other programs have been given: their values stay. Keys of the API server stay in the configuration; the cluster has
their hashes, under a name that is always the same."""


def test_every_stack_of_the_first_release_is_kept() -> None:
    assert {release.stack for release in kept() if release.number == 1} == set(preview.STACKS)


def imported(release: Release, work: Path) -> Engine:
    """A stack of today's program that has the release's state."""
    engine = Engine(release.stack, work)
    engine.configure()
    state = release.state(str(engine.target))
    # Values of secrets are plain in the file; from here on they are kept under this stack's passphrase.
    salt = yaml.safe_load(engine.cli.config_file.read_text())["encryptionsalt"]
    state["deployment"]["secrets_providers"] = {"type": "passphrase", "state": {"salt": salt}}
    engine.cli.run("stack", "import", stdin=json.dumps(state))
    return engine


def named(step: Step) -> str:
    return re.sub(r"-[0-9a-f]{8}$", "", step.object)


def lines(plan: Plan) -> list[str]:
    """What the update would do, for people: one line an object, with the fields that differ."""
    return sorted(f"{step.op} {named(step)}: {', '.join(sorted(step.reasons)) or 'all of it'}" for step in plan.steps)


@pytest.mark.parametrize("release", kept(), ids=lambda release: f"{release.number}-{release.stack}")
def test_an_upgrade_keeps_everything_that_holds_data(release: Release, tmp_path: Path) -> None:
    engine = imported(release, tmp_path)
    found: dict[str, list[str]] = {}
    configurations = {"the release's": release.config, "today's": prebuilt(preview.stack_config(release.stack))}
    if release.config == configurations["today's"]:
        del configurations["today's"]
    for whose, config in configurations.items():
        plan = engine.planned(config=config)
        assert not plan.errors
        refuse_data_loss(plan, ())
        refuse_the_impossible(plan, ())
        removing = [step for step in plan.steps if step.op not in ("create", "update")]
        deleted = {step.object for step in removing if step.op == "delete"}
        assert deleted <= HANDED_OVER.keys(), "give what replaces them an Alias"
        ops = [(step.op, step.object) for step in plan.steps]
        for each in deleted:
            assert ops.index(("create", HANDED_OVER[each])) < ops.index(("delete", each))
        assert not [step.object for step in removing if step.kind in HOLD_DATA]
        secrets = [step for step in plan.steps if step.kind == "Secret" and named(step).partition("/")[2] in SECRETS_OF_CLIENTS]
        assert not [step.object for step in secrets if step.op != "update" or not all(map(_is_a_note, step.reasons))]
        found[whose] = lines(plan)
    text = "".join(f"with {whose} configuration:\n" + "".join(f"  {line}\n" for line in each) for whose, each in found.items())
    if os.environ.get("UPDATE_GOLDEN"):
        release.changes.write_text(text)
    assert text == release.changes.read_text()


def _is_a_note(path: str) -> bool:
    """Whether a changed field says something about an object, and is none of its values."""
    return path == "immutable" or path.startswith("metadata.annotations")


def identity(document: dict[str, Any]) -> tuple[str, str, str]:
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


@pytest.mark.parametrize("release", kept(), ids=lambda release: f"{release.number}-{release.stack}")
def test_the_objects_of_a_release_keep_their_names(release: Release) -> None:
    today = {identity(document) for _, document in preview.manifests(GOLDEN / release.stack)}
    gone = {identity(document) for document in release.objects()} - today
    assert {f"{kind}/{name}" for kind, _, name in gone} <= HANDED_OVER.keys()
    assert {(HANDED_OVER[f"{kind}/{name}"].partition("/")[0], namespace, name) for kind, namespace, name in gone} <= today
