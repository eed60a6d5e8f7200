"""Each test that docs/threats.md, docs/reports.md and docs/maintenance.md name is there, and each finding about the services has a row."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = sorted(
    {
        found
        for page in ("threats", "reports", "maintenance")
        for found in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)*)`", (ROOT / "docs" / f"{page}.md").read_text())
    }
)
SERVICES = [*(f"A{number}" for number in range(1, 9)), *(f"B{number}" for number in range(1, 11))]
"""Findings of a strict reader of the services."""
REPORTS = [f"S{number:02}" for number in (*range(13), *range(14, 18), 19, 20, 22, 23, 25)]
"""Reports of those who run such systems; the other numbers were never given."""


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 40


def is_there(name: str) -> None:
    """Fail unless the file, or the directory, exists, and has the test of that name."""
    path, *within = name.split("::")
    assert (ROOT / path).exists(), path
    for depth, each in enumerate(within):
        assert re.search(rf"^{'    ' * depth}(?:def|class) {each}\b", (ROOT / path).read_text(), re.MULTILINE), each


@pytest.mark.parametrize("name", NAMED)
def test_every_named_test_exists(name: str) -> None:
    is_there(name)


def test_every_threat_has_a_test() -> None:
    rows = re.findall(r"^\| (?!threat |---)(.+?) \| .+ \| (.+) \|$", (ROOT / "docs" / "threats.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    assert [threat for threat, tests in rows if "`tests/" not in tests] == []


def ids(cell: str) -> set[str]:
    """`S08 to S11, S03` is five of them; `services B1` is one."""
    found: set[str] = set()
    for letter, first, last in re.findall(r"\b([ABS])(\d+)(?: to [ABS](\d+))?", cell):
        found |= {f"{letter}{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)}
    return found


def test_every_finding_about_the_services_has_a_row() -> None:
    page = (ROOT / "docs" / "reports.md").read_text().partition("\n## The services\n")[2]
    cells = re.findall(r"^\| (?!id |---)(.+?) \|", page, re.MULTILINE)
    found = {each for cell in cells for each in ids(cell)}
    assert ids("S08 to S11, services B10") == {"S08", "S09", "S10", "S11", "B10"}
    assert [each for each in (*SERVICES, *REPORTS) if each not in found] == []
