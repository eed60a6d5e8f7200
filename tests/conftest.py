"""How the tests share two cores: the cluster tier mostly waits for pods, so the other tiers run beside it."""

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of the cluster tier, and otherwise each file, stays in one worker and in order."""
    for item in items:
        tier = Path(item.path).parent.name
        item.add_marker(pytest.mark.xdist_group("cluster" if tier == "cluster" else f"{tier}/{Path(item.path).name}"))
