"""The stacks of examples/platforms: each is complete, is rendered whole, and keeps every rule."""

import json
from typing import Any

import pytest

from infra.analysis.manifests.schema import problems
from infra.analysis.policy import rules
from infra.program import stack
from infra.program.settings import parse
from tests.component.harness import rendered
from tests.component.test_fit import made
from tests.overlay import DIRECTORY, PLATFORMS, on_platform
from tests.unit.test_settings import REFS
from tests.unit.test_settings_fuzz import GOOD, with_config


def config(platform: str) -> dict[str, Any]:
    return {"cluster": {}, **on_platform(platform), "images": {"refs": REFS}}


def objects(platform: str) -> list[dict[str, Any]]:
    wanted, found = config(platform), []

    def build() -> None:
        settings = parse(rendered(wanted, **wanted["cluster"]))
        found.extend(made(lambda: stack.build(settings)))

    with_config({**{name: json.dumps(value) for name, value in wanted.items()}, **GOOD}, build, tuple(GOOD))
    return found


def test_there_is_one_for_each_platform() -> None:
    assert {"eks", "gke", "aks", "openshift", "on-premises", "kind"} == set(PLATFORMS)
    said = [line.partition(":")[0] for line in (DIRECTORY / "not-run.txt").read_text().splitlines()]
    assert sorted(said) == PLATFORMS


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_platforms_stack_keeps_every_rule(platform: str) -> None:
    found = objects(platform)
    assert rules.violations(found) == []
    # Under mocks a Secret has the wrapping of secrets.
    assert [line for item in found if item["kind"] != "Secret" for line in problems(item)] == []
    kinds = {item["kind"] for item in found}
    assert ("RuntimeClass" in kinds) is False, "no platform needs one of ours"
    assert ("StorageClass" in kinds) == (platform in ("eks", "aks", "on-premises"))
