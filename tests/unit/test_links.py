"""Every link of a page that leads to a file or a heading of this repository leads somewhere. Addresses of others are not asked."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
_TRACKED = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "*.md"], capture_output=True, text=True, check=True).stdout.split("\0")
PAGES = sorted(ROOT / name for name in _TRACKED if name and not name.startswith("tests/golden/releases/"))
_CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")


def anchors(text: str) -> set[str]:
    """Of the headings of a page, as GitHub and MkDocs name them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        same = sum(1 for each in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", each))
        found.add(f"{name}-{same}" if same else name)
    return found


def broken(page: Path, text: str) -> Iterator[str]:
    for link in _LINK.findall(_CODE.sub("", text)):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if (path and not target.exists()) or ROOT not in target.parents:
            yield f"{link}: got no such file"
        elif anchor and anchor not in anchors(text if target == page else target.read_text()):
            yield f"{link}: got no such heading"


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken(page, page.read_text())) == []


def test_every_page_can_be_reached_from_the_first() -> None:
    seen, left = set[Path](), [ROOT / "README.md"]
    while left:
        page = left.pop()
        seen.add(page)
        links = {link.partition("#")[0] for link in _LINK.findall(page.read_text()) if ":" not in link}
        for target in ((page.parent / unquote(link)).resolve() for link in links if link):
            pages = sorted(target.glob("*.md")) if target.is_dir() else [target]
            left += [each for each in pages if each in PAGES and each not in seen]
    assert {page for page in PAGES if page.parent == ROOT / "docs"} <= seen


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](alerts.md)", []),
        ("[a](alerts.md#the-promises) and `[x](y)`", []),
        ("[a](https://nowhere.example/x)", []),
        ("[a](gone.md)", ["gone.md: got no such file"]),
        ("[a](../../outside.md)", ["../../outside.md: got no such file"]),
        ("[a](alerts.md#gone)", ["alerts.md#gone: got no such heading"]),
        ("# One\n\n[a](#one) [b](#two)", ["#two: got no such heading"]),
        ("# One `two`, three!\n\n## Same\n\n## Same\n\n[a](#one-two-three) [b](#same-1)", []),
    ],
)
def test_a_link_that_leads_nowhere_is_noticed(text: str, found: list[str]) -> None:
    assert list(broken(ROOT / "docs" / "page.md", text)) == found
