"""What every proof has: its mark, a place for its figures, and with --record a result that is kept."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.conditions import conditions
from tests.cluster.conftest import first, kube, stack, started
from tests.proofs.records import ROOT, Declared, declared
from tests.proofs.vllm_environment import vllm_python

__all__ = ["first", "kube", "stack", "started", "vllm_python"]
"""A cluster of its own with the dev stack, and an environment with vLLM, for the proofs that ask for one."""
FIGURES = pytest.StashKey[dict[str, Any]]()
PROOF = pytest.StashKey[tuple[Declared, dict[str, str]]]()
"""What is being recorded, with its digests of before the run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="keep the result of this proof; make proof does it")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.proof)


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What the proof measured, to be filled in: becomes `figures` of its result."""
    return pytestconfig.stash[FIGURES]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = {}


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if not config.getoption("record", default=False):
        return
    [proof] = [each for each in declared() if each.file in config.args]
    if files := proof.uncommitted():
        raise pytest.UsageError(f"{proof.name}: got changes that are not committed ({', '.join(files)}), want none; commit them first")
    config.stash[PROOF] = proof, proof.digests()


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    yield
    config = session.config
    if PROOF not in config.stash and config.stash[FIGURES]:
        print("\nfigures, not kept:", json.dumps(config.stash[FIGURES], indent=1))
    if PROOF not in config.stash or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        # Interrupted, or not a test's fault: the result of before stays.
        return
    proof, digests = config.stash[PROOF]
    if proof.uncommitted() or proof.digests() != digests:
        pytest.exit(f"{proof.name}: got other content of its paths than at the start, want the same; run it again", returncode=3)
    passed = exitstatus == pytest.ExitCode.OK
    proof.write(passed=passed, conditions=conditions(proof.command), figures=config.stash[FIGURES], digests=digests)
    print(f"\nproof: {proof.name} kept in {proof.record.relative_to(ROOT)}")
