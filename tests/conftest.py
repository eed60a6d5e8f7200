"""How the tests share two cores: the cluster tier mostly waits for pods, so the other tiers run beside it."""

import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.proofs.records import ProofError, declared, stale

# What was typed with `make test` is not for the commands that tests run.
for _variable in ("MAKEFLAGS", "MAKELEVEL"):
    os.environ.pop(_variable, None)


class Tiers(LoadScopeScheduling):
    """All of the cluster tier, and otherwise each file, stays in one worker and in order."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "cluster" if "tests/cluster/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Tiers:
    return Tiers(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """After the whole suite: which proofs no longer hold. This is news, not a failure: only a release refuses them."""
    if "tests" not in [argument.rstrip("/") for argument in config.args]:
        return
    try:
        lines = list(stale(declared()).values())
    except ProofError as error:
        lines = [f"error: {error}"]
    if lines:
        terminalreporter.section("stale proofs")
        terminalreporter.write("".join(f"{line}\n" for line in lines))
