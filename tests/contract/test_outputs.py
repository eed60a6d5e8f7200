"""The outputs keep their promise: what a consumer of version N reads today, it reads from every later fleet of version N."""

import copy
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.program.outputs import models
from infra.program.settings import parse as parse_settings
from modelfleet_outputs import VERSION, FleetOutputs, OutputsError, parse
from tests.unit.test_settings import FLEET
from tests.unit.test_settings import document as stack_document
from tests.wheel import build as build_wheel

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PUBLISHED: dict[str, Any] = json.loads((HERE / f"outputs-v{VERSION}.schema.json").read_text())
EXPORTED: dict[str, Any] = json.loads((HERE / f"outputs-v{VERSION}.json").read_text())
"""An output as a fleet of this version exported it when the version was published."""
_PROSE = ("title", "description", "default")


def _form(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema without prose, references replaced by what they point to, and optional properties left out."""
    if isinstance(schema, list):
        return [_form(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _form(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _form(value, definitions) for key, value in schema.items() if key not in (*_PROSE, "$defs")}


def breaking(old: Any, new: Any, path: str = "fleet") -> list[str]:
    """What breaks: a reader of `old` on a document of `new`, or a reader of `new` on a document of `old`."""
    old_form, new_form = _form(old, old.get("$defs", {})), _form(new, new.get("$defs", {}))
    return _breaking(old_form, new_form, path)


def _breaking(old: Any, new: Any, path: str) -> list[str]:
    if not (isinstance(old, dict) and isinstance(new, dict) and "properties" in old and "properties" in new):
        if isinstance(old, dict) and isinstance(new, dict) and "items" in old and "items" in new:
            return _breaking(old["items"], new["items"], f"{path}[]")
        return [] if old == new else [f"{path}: got {json.dumps(new)}, want {json.dumps(old)}"]
    found = [f"{path}.{name}: got nothing, want it" for name in old["properties"] if name not in new["properties"]]
    if set(old.get("required", [])) != set(new.get("required", [])) & set(old["properties"]):
        found.append(f"{path}: got other fields required, want {sorted(old.get('required', []))}")
    found += [
        f"{path}.{name}: got a new required field, want it optional" for name in new.get("required", []) if name not in old["properties"]
    ]
    for name in old["properties"].keys() & new["properties"].keys():
        found += _breaking(old["properties"][name], new["properties"][name], f"{path}.{name}")
    return found


def test_the_contract_keeps_what_its_version_published() -> None:
    assert breaking(PUBLISHED, FleetOutputs.model_json_schema()) == [], "raise modelfleet_outputs.contract.VERSION, or keep the field"


def test_an_output_of_this_version_is_still_read() -> None:
    outputs = parse(EXPORTED)
    assert outputs.url == "http://api-server.modelfleet.svc:8000/v1"
    assert [model.id for model in outputs.models] == ["qwen3-coder:30b", "qwen3-coder-30b-cpu"]


def test_a_field_of_a_newer_fleet_is_ignored() -> None:
    assert parse({**EXPORTED, "region": "north"}) == parse(EXPORTED)


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    schema = copy.deepcopy(PUBLISHED)
    change(schema)
    return schema


BREAKS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda schema: schema["properties"].pop("url"), "fleet.url: got nothing"),
    (lambda schema: schema["properties"]["port"].update(type="string"), "fleet.port: got"),
    (lambda schema: schema["properties"]["url"].update(anyOf=[{"type": "string"}, {"type": "null"}]), "fleet.url: got"),
    (lambda schema: schema["properties"]["node_port"].update(anyOf=[{"type": "integer"}]), "fleet.node_port: got"),
    (lambda schema: schema["required"].remove("url"), "fleet: got other fields required"),
    (
        lambda schema: (schema["properties"].update(new={"type": "string"}), schema["required"].append("new")),
        "fleet.new: got a new required",
    ),
    (lambda schema: schema["$defs"]["ModelOutput"]["properties"].pop("id"), "fleet.models[].id: got nothing"),
    (lambda schema: schema["$defs"]["ModelOutput"]["properties"]["id"].update(type="integer"), "fleet.models[].id: got"),
    (lambda schema: schema["properties"]["images"]["additionalProperties"].update(type="integer"), "fleet.images: got"),
]


@pytest.mark.parametrize(("change", "line"), BREAKS, ids=[line for _, line in BREAKS])
def test_a_breaking_change_is_named(change: Callable[[dict[str, Any]], object], line: str) -> None:
    assert any(each.startswith(line) for each in breaking(PUBLISHED, changed(change)))


@pytest.mark.parametrize(
    "change",
    [
        lambda schema: schema["properties"].update(region={"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}),
        lambda schema: schema["$defs"]["ModelOutput"]["properties"].update(family={"type": "string", "default": ""}),
        lambda schema: schema["properties"]["url"].update(description="said better"),
    ],
)
def test_an_optional_field_or_better_words_break_nothing(change: Callable[[dict[str, Any]], object]) -> None:
    assert breaking(PUBLISHED, changed(change)) == []


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({**EXPORTED, "version": 99}, f"fleet.version: got 99, want {VERSION}; install"),
        ("text", f"fleet.version: got None, want {VERSION}"),
        ({**EXPORTED, "models": [{"id": 3}]}, "fleet.models.0.id: got"),
    ],
)
def test_another_version_or_form_is_refused(document: Any, line: str) -> None:
    with pytest.raises(OutputsError) as refusal:
        parse(document)
    assert str(refusal.value).startswith(line)


def test_the_models_are_those_of_the_settings() -> None:
    found = [model.model_dump(exclude_none=True) for model in models(parse_settings(stack_document(FLEET)))]
    first = [{name: model[name] for name in was} for model, was in zip(found, EXPORTED["models"], strict=True)]
    assert first == EXPORTED["models"]
    # Of later fields of the same version.
    assert [(model["warm_conversations"], model["warm_tokens"]) for model in found] == [(3, 262143), (6, 196608)]


def test_the_published_package_stands_alone(tmp_path: Path) -> None:
    """Built as it is published, and imported where this repository is not."""
    wheel = build_wheel("modelfleet_outputs", tmp_path)
    assert wheel.name.startswith(f"modelfleet_outputs-{VERSION}."), "the package's major version is the contract's"
    assert {"modelfleet_outputs/contract.py", "modelfleet_outputs/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())
    program = "import sys, modelfleet_outputs.stack; print(modelfleet_outputs.__file__); assert 'infra' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(wheel)}, capture_output=True, text=True)
    assert str(wheel) in done.stdout, done.stderr
