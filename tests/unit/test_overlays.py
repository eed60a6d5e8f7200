"""Overlays of proofs name what a laptop has not, and leave every other key of a stack as it is committed."""

from typing import Any

import pytest

from infra.program.settings.committed import stack_config
from tests.overlay import changed, laid_over, leaves, on_platform, sections
from tests.proofs import test_platforms, test_prod

KEPT = {"fleet.replicas", "apiServer.replicas", "governance.production", "storage.retain"}
PROD = {
    *("images", "models", "storage.hot", "storage.shared", "gpu.enabled", "governance.gpuQuota", "governance.cpu", "governance.memory"),
    *("fleet.gpusPerPod", "fleet.contextLength", "fleet.minContext", "fleet.promptCache", "fleet.resources"),
    *("cache.maxMemory", "cache.resources", "apiServer.resources", "monitoring.resources"),
}
"""What the proof `prod` may say."""


def _below(path: str, names: set[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def test_a_key_of_any_depth_is_compared() -> None:
    before: dict[str, Any] = {"a": {"b": [{"c": 1, "d": [1, 2]}], "e": None}, "f": {}}
    assert leaves(before) == {"a.b.0.c": 1, "a.b.0.d": [1, 2], "a.e": None, "f": {}}
    assert changed(before, before) == set()
    assert changed(before, {"a": {"b": [{"c": 2, "d": [1, 2]}, {"c": 1}]}, "f": {}}) == {"a.b.0.c", "a.b.1.c", "a.e"}


def test_prod_is_as_committed_but_for_the_named_keys() -> None:
    committed = sections(stack_config("prod"))
    paths = changed(committed, {**committed, **test_prod.on_a_laptop({})})
    servers = {f"modelServers.{index}.{key}" for index in range(len(committed["modelServers"])) for key in test_prod.SERVER}
    named = PROD | servers
    assert sorted(path for path in paths if not _below(path, named)) == []
    assert sorted(name for name in named if not any(_below(path, {name}) for path in paths)) == [], (
        "what does not differ is not for it to say"
    )
    assert not paths & KEPT
    assert committed["governance"]["production"] is True
    assert (committed["fleet"]["replicas"], committed["apiServer"]["replicas"]) == (3, 3)


@pytest.mark.parametrize("platform", test_platforms.AS_ON_A_LAPTOP)
def test_a_platforms_overlay_says_no_more_than_it_must(platform: str) -> None:
    """Every key that it names differs, and no other: replicas, production, policies and the platform's own settings are as they are."""
    before = on_platform(platform)
    paths = changed(before, laid_over(before, test_platforms.overlay(platform)))
    named = {*test_platforms.AS_ON_A_LAPTOP[platform], *(["modelServers"] if "models" in test_platforms.AS_ON_A_LAPTOP[platform] else [])}
    assert sorted(path for path in paths if not _below(path, named)) == []
    assert sorted(name for name in named if not any(_below(path, {name}) for path in paths)) == []
    assert not paths & KEPT
