"""docs/reports.md has a row for each finding about clusters and infrastructure, and each row leads to what is there."""

import re
from pathlib import Path

import pytest

from tests.contract.test_threats import is_there

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reports.md").read_text()
IDS = [
    *(f"H{number}" for number in range(1, 14)),
    *(f"M{number}" for number in range(1, 21)),
    *(f"D{number}" for number in range(1, 11)),
    # There is no I09 and no I17.
    *(f"I{number:02}" for number in range(1, 25) if number not in (9, 17)),
    *(f"infra C{number}" for number in range(1, 7)),
    *("C1", "C2", "C3"),
]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if re.match(r"\| (?!id |---)", line)]
MEANS_NO_TEST = ("no ", "none: ", "not tried", "\N{EN DASH}")
"""How a row begins that says why it has no test."""


def test_every_finding_has_a_row() -> None:
    found = {each.removeprefix("core ").strip() for row in ROWS for each in row[0].split(",")}
    assert [each for each in IDS if each not in found] == []


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_says_what_is_done_and_names_a_test_that_there_is(row: list[str]) -> None:
    _, finding, done, tests = row
    assert finding
    assert done
    named = re.findall(r"`((?:tests|bench)/[\w/.-]+(?:::\w+)*)`", tests)
    proofs = re.findall(r"proofs? `([\w-]+)`", tests)
    for name in named:
        is_there(name)
    for proof in proofs:
        assert any(f'"{proof}"' in path.read_text() for path in (ROOT / "tests" / "proofs").glob("test_*.py")), proof
    assert named or proofs or "bench/results" in tests or tests.startswith(MEANS_NO_TEST), tests
