"""Stacks that lie over committed ones: a platform's of examples/platforms, and those of proofs, which name what a laptop has not."""

import copy
from collections.abc import Mapping
from typing import Any

import yaml

from infra import ROOT
from infra.program.settings.committed import stack_config

DIRECTORY = ROOT / "examples" / "platforms"
PLATFORMS = sorted(path.stem for path in DIRECTORY.glob("*.yaml"))
WITHOUT_GPUS: dict[str, Any] = {"engine": "llama-cpp", "gpus": 0, "vllm": None}
"""A model server of a laptop."""


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`, map by map. Where a tier of storage gets another class, what the one before was told goes."""
    if over.keys() & {"provisioner", "className"}:
        base = {"size": base["size"]}
    merged = {**base, **over}
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = laid_over(base[key], value)
    return merged


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stack file's configuration by the names of its sections."""
    return {name.removeprefix("modelfleet:"): copy.deepcopy(values) for name, values in config.items()}


def base(platform: str) -> str:
    """The committed stack that a platform's file lies over."""
    return "dev" if platform == "kind" else "prod"


def on_platform(platform: str) -> dict[str, Any]:
    """The sections of a platform's stack, as the page of the examples says."""
    over = yaml.safe_load((DIRECTORY / f"{platform}.yaml").read_text())["config"]
    return laid_over(sections(stack_config(base(platform))), sections(over))


def leaves(values: Any, path: str = "") -> dict[str, Any]:
    """Path to value, of all that is neither a map nor a list of maps."""
    if isinstance(values, Mapping) and values:
        items = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list) and values and all(isinstance(each, Mapping) for each in values):
        items = [(str(index), each) for index, each in enumerate(values)]
    else:
        return {path: values}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= leaves(value, f"{path}.{key}" if path else key)
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Paths of what one of two configurations has otherwise than the other, or alone."""
    was, now = leaves(before), leaves(after)
    return {path for path in {*was, *now} if (path in was, was.get(path)) != (path in now, now.get(path))}
