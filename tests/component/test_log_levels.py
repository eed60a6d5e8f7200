"""`monitoring.logLevel` reaches every container that reads it, and changes no pod while it is what it always was."""

import json
from typing import Any

import pytest

from components.contract import LOG_LEVELS
from infra.program import stack
from infra.program.settings import parse
from tests.component.harness import rendered
from tests.component.test_fit import made
from tests.unit.test_settings import REFS, document
from tests.unit.test_settings_fuzz import GOOD, with_config


def variables(level: str | None) -> dict[str, dict[str, str]]:
    """Container of the dev stack, with scale to zero, to its variables."""
    config: dict[str, Any] = document("dev") | {"images": {"refs": REFS}}
    config["fleet"] |= {"scaleToZero": {"kubernetesCidrs": ["10.0.0.1/32"]}}
    if level is not None:
        config["monitoring"] |= {"logLevel": level}
    found: dict[str, dict[str, str]] = {}

    def build() -> None:
        for item in made(lambda: stack.build(parse(rendered(config)))):
            pod = item.get("spec", {}).get("template", {}).get("spec", {})
            for each in [*pod.get("containers", []), *(pod.get("initContainers") or [])]:
                found[each["name"]] = {one["name"]: one.get("value", "") for one in each.get("env") or []}

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **GOOD}, build, tuple(GOOD))
    return found


@pytest.mark.parametrize("level", ["debug", "warning"])
def test_every_service_of_the_dev_stack_gets_the_level(level: str) -> None:
    before, after = variables(None), variables(level)
    assert before == variables("info")
    assert before.keys() == after.keys()
    changed = {name: {each: value for each, value in after[name].items() if before[name].get(each) != value} for name in after}
    ollama = changed.pop("ollama")
    assert ollama == ({"OLLAMA_DEBUG": "1"} if level == "debug" else {})
    assert "activator" in changed
    revised = {"OLLAMA_AGENT_REVISION", "OLLAMA_PROBE_REVISION"}
    said = {name: {each: value for each, value in more.items() if each not in revised} for name, more in changed.items()}
    wanted = {name: {LOG_LEVELS[name]: level} for name in LOG_LEVELS if name in after}
    assert {name: more for name, more in said.items() if more} == wanted
