"""How the tests share two cores: the cluster tier mostly waits for pods, so the other tiers run beside it."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


class Tiers(LoadScopeScheduling):
    """All of the cluster tier, and otherwise each file, stays in one worker and in order."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "cluster" if "tests/cluster/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Tiers:
    return Tiers(config, log)
