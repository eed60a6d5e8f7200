"""The components keep their promise: a program that was written against version N runs with every later package of version N."""

import ast
import copy
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.documentation import components as page
from tests.wheel import ROOT

PROJECT = tomllib.loads((ROOT / "components" / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"].partition(".")[0]
STORED = Path(__file__).parent / f"components-v{VERSION}.json"
PUBLISHED: dict[str, Any] = json.loads(STORED.read_text())


def breaking(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What a program of `old` trips over in `new`."""
    found: list[str] = []
    for name, fields in old["arguments"].items():
        found += _arguments(name, fields, new["arguments"].get(name))
    for name, component in old["components"].items():
        found += _component(name, component, new["components"].get(name))
    return found


def _arguments(name: str, old: dict[str, Any], new: dict[str, Any] | None) -> list[str]:
    if new is None:
        return [f"{name}: got nothing, want it"]
    found = [f"{name}.{field}: got nothing, want it" for field in old if field not in new]
    for field, form in new.items():
        if form["required"] and not old.get(field, {"required": False})["required"]:
            found.append(f"{name}.{field}: got it required, want a default")
    for field in old.keys() & new.keys():
        lost = set(old[field]["type"]) - set(new[field]["type"])
        found += [f"{name}.{field}: got {new[field]['type']}, want {each} too" for each in sorted(lost)]
    return found


def _component(name: str, old: dict[str, Any], new: dict[str, Any] | None) -> list[str]:
    if new is None:
        return [f"{name}: got nothing, want it"]
    found = [] if old["token"] == new["token"] else [f"{name}: got the type token {new['token']}, want {old['token']}"]
    for output, form in old["outputs"].items():
        if output not in new["outputs"]:
            found.append(f"{name}.{output}: got nothing, want it")
        elif more := set(new["outputs"][output]) - set(form):
            found.append(f"{name}.{output}: got {sorted(more)}, want {form}")
    for method, parameters in old["methods"].items():
        if new["methods"].get(method) != parameters:
            found.append(f"{name}.{method}: got {new['methods'].get(method)}, want {parameters}")
    return found


def test_the_package_keeps_what_its_version_published() -> None:
    assert breaking(PUBLISHED, page.interface()) == [], "keep it, or raise the major version in components/pyproject.toml"


def test_what_was_added_is_promised_too() -> None:
    added = f"python -m infra.documentation.components > {STORED.relative_to(ROOT)}"
    assert STORED.read_text() == page.promise(), f"when nothing is broken: {added}"


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    interface = copy.deepcopy(PUBLISHED)
    change(interface)
    return interface


def field(required: bool) -> dict[str, Any]:
    return {"required": required, "type": ["str"]}


BREAKS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda new: new["components"].pop("Storage"), "Storage: got nothing"),
    (lambda new: new["arguments"].pop("TierArgs"), "TierArgs: got nothing"),
    (lambda new: new["arguments"]["TierArgs"].pop("size"), "TierArgs.size: got nothing"),
    (lambda new: new["arguments"]["TierArgs"].update(pool=field(required=True)), "TierArgs.pool: got it required"),
    (lambda new: new["arguments"]["TierArgs"]["parameters"].update(required=True), "TierArgs.parameters: got it required"),
    (lambda new: new["arguments"]["TierArgs"]["size"].update(type=["int"]), "TierArgs.size: got ['int'], want str"),
    (
        lambda new: new["arguments"]["OllamaFleetArgs"]["replicas"]["type"].remove("None"),
        "OllamaFleetArgs.replicas: got ['int'], want None",
    ),
    (lambda new: new["components"]["Storage"].update(token="modelfleet:index:Vault"), "Storage: got the type token modelfleet:index:Vault"),
    (lambda new: new["components"]["Storage"]["outputs"].pop("hot_class"), "Storage.hot_class: got nothing"),
    (lambda new: new["components"]["Storage"]["outputs"]["hot_class"].append("None"), "Storage.hot_class: got ['None']"),
    (lambda new: new["components"]["ModelStore"]["methods"].clear(), "ModelStore.clean_after: got None"),
    (
        lambda new: new["components"]["ModelStore"]["methods"]["clean_after"].append("when"),
        "ModelStore.clean_after: got ['readers', 'when']",
    ),
]


@pytest.mark.parametrize(("change", "line"), BREAKS, ids=[line for _, line in BREAKS])
def test_a_breaking_change_is_named(change: Callable[[dict[str, Any]], object], line: str) -> None:
    assert [each[: len(line)] for each in breaking(PUBLISHED, changed(change))] == [line]


@pytest.mark.parametrize(
    "change",
    [
        lambda new: new["components"].update(Vault={"token": "modelfleet:index:Vault", "outputs": {}, "methods": {}}),
        lambda new: new["arguments"].update(VaultArgs={"size": field(required=True)}),
        lambda new: new["arguments"]["TierArgs"].update(pool=field(required=False)),
        lambda new: new["arguments"]["TierArgs"]["size"].update(required=False, type=["int", "str"]),
        lambda new: new["components"]["OllamaFleet"]["outputs"]["probe"].remove("None"),
    ],
)
def test_an_addition_breaks_nothing(change: Callable[[dict[str, Any]], object]) -> None:
    assert breaking(PUBLISHED, changed(change)) == []


def test_every_component_has_documented_arguments() -> None:
    assert {f"{each.__name__}Args" for each in page.components()} <= {each.__name__ for each in page.arguments()}
    assert [each.__name__ for each in (*page.arguments(), *page.components()) if not each.__doc__] == []


def test_type_tokens_are_those_that_are_written() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "components").glob("*.py"))
    assert sorted(re.findall(r'type_token\("(\w+)"\)', sources)) == sorted(PUBLISHED["components"])


def test_the_page_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "components.md").read_text() == page.document()


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [] if node.level else [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_the_package_asks_for_what_it_imports_within_bounds_that_hold_here() -> None:
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    matches = [re.fullmatch(r"([a-z-]+)>=([\d.!]+),<([\d.!]+)", line) for line in (*PROJECT["dependencies"], *extras)]
    bounds = {match[1]: (_numbers(match[2]), _numbers(match[3])) for match in matches if match}
    assert len(bounds) == len(matches), "every dependency has a lower and an upper bound"
    imported = {
        module.partition(".")[0]
        for path in (ROOT / "components").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for module in _modules(node)
    }
    theirs = imported - set(sys.stdlib_module_names)
    distributions = {"yaml": "pyyaml"}
    assert {distributions.get(name, name.replace("_", "-")) for name in theirs} == set(bounds)
    locked = dict(re.findall(r"^([a-z0-9-]+)==([\d.!]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    for name, (least, most) in bounds.items():
        assert least <= _numbers(locked[name]) < most, name


def _numbers(version: str) -> tuple[int, ...]:
    """With what a version may have before a `!`, which orders it before all else."""
    epoch, _, numbers = version.rpartition("!")
    return int(epoch or 0), *(int(part) for part in numbers.split("."))
