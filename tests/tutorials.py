"""What docs/tutorials has: commands in blocks of `sh`, what one sees in blocks of `text`, and parts of stack files in blocks of `yaml`."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
PAGES = sorted(DIRECTORY.glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The page's commands in their order, without comments. One goes on where a quotation or a backslash does."""
    return [command for block in blocks(page, "sh") for command in _of(block)]


def _of(block: str) -> Iterator[str]:
    begun = ""
    for line in block.splitlines():
        begun += re.sub(r"\s+# .*$", "", line) if not begun else f"\n{line}"
        if begun and not begun.endswith("\\") and _whole(begun):
            yield begun
            begun = ""
    assert not begun, f"got a command that does not end: {begun}"


def _whole(text: str) -> bool:
    try:
        shlex.split(text)
    except ValueError:
        return False
    return True


def shown(page: Path) -> list[str]:
    return blocks(page, "text")
