"""Pulumi.yaml says what the program takes, and the packages that `pulumi install` reads are those of the lock."""

from typing import get_origin

import yaml

from infra import ROOT
from infra.program.settings.section import PROJECT
from infra.program.settings.sections import Sections

PULUMI = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())


def test_pulumi_knows_every_section() -> None:
    declared = {name: each for name, each in PULUMI["config"].items() if name.startswith(f"{PROJECT}:")}
    fields = {f"{PROJECT}:{field.alias or name}": field for name, field in Sections.model_fields.items()}
    assert declared.keys() == fields.keys()
    for name, field in fields.items():
        assert declared[name]["type"] == ("array" if get_origin(field.annotation) is list else "object"), name
        assert ("default" in declared[name]) == (not field.is_required()), name
        assert declared[name]["description"], name


def test_no_object_goes_to_the_current_context() -> None:
    assert PULUMI["config"]["pulumi:disable-default-providers"] == {"value": ["kubernetes"]}


def test_pulumi_installs_what_is_locked() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["-r requirements.lock"]
