"""The commands of docs/runbook.md, as they stand there."""

from infra import ROOT
from tests.proofs.records import CODE_BLOCK


def commands(title: str) -> str:
    """The code blocks of the section whose title begins so, in order."""
    section = (ROOT / "docs" / "runbook.md").read_text().partition(f"\n## {title}")[2].partition("\n## ")[0]
    found = "\n".join(line.removeprefix("   ") for block in CODE_BLOCK.findall(section) for line in block.splitlines())
    assert found, f"docs/runbook.md: got no commands below {title!r}, want some"
    return found
