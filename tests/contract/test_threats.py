"""Each test that docs/threats.md and docs/reports.md name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = sorted(
    {
        found
        for page in ("threats", "reports")
        for found in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", (ROOT / "docs" / f"{page}.md").read_text())
    }
)


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize("name", NAMED)
def test_every_named_test_exists(name: str) -> None:
    path, _, function = name.partition("::")
    text = (ROOT / path).read_text()
    assert not function or re.search(rf"^(?:def|class) {function}\b", text, re.MULTILINE)


def test_every_threat_has_a_test() -> None:
    rows = re.findall(r"^\| (?!threat |---)(.+?) \| .+ \| (.+) \|$", (ROOT / "docs" / "threats.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    assert [threat for threat, tests in rows if "`tests/" not in tests] == []
