"""The pages of docs/ as a site that a browser opens without a server and without the internet. docs/maintenance.md has the command.

python docs/site/build.py [DIRECTORY]; without one, it is build/site.

Pages are written as a code host takes them, and the site is made of copies in which each link leads to the same within the site. What a
page links to outside of docs/ is a page, too: below `repository/`. The navigation is that of docs/README.md. Only files that Git knows are
taken. Any warning fails the build: a link or a heading that is not there, a page that docs/README.md does not lead to.
"""

import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
START = DOCS / "README.md"
_LISTED = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
TRACKED = sorted(path for path in (ROOT / name for name in _LISTED if name) if path.is_file())
_CODE_OR_LINK = re.compile(r"^ *(```+).*?^ *\1|`[^`\n]*`|\]\(\s*(?P<to>[^)\s]+)\s*\)", re.MULTILINE | re.DOTALL)
_DRAWING = re.compile(r"^```mermaid\n.*?^```\n", re.MULTILINE | re.DOTALL)
"""What code hosts draw by a script of their own. The site has the table below it."""
_COPIED = {".png"}
_LANGUAGES = {".json": "json", ".py": "python", ".yaml": "yaml", ".yml": "yaml"}
_SETTINGS = {
    "project": "modelfleet",
    "html_title": "modelfleet",
    "html_theme": "furo",
    "html_copy_source": False,
    "html_show_sphinx": False,
    "extensions": ["myst_parser"],
    "myst_heading_anchors": 6,
    "highlight_language": "none",
    "smartquotes": False,
    # Commands and settings with `…` in them are no whole programs.
    "suppress_warnings": ["misc.highlighting_failure"],
}


def place(path: Path) -> str:
    """Where a file or a directory of the repository is in the site's sources."""
    if path == START:
        return "index.md"
    if path.name == "README.md" and path.parent != ROOT:
        path = path.parent
    name = path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else f"repository/{path.relative_to(ROOT).as_posix()}"
    if path.is_dir():
        return f"{name}/index.md"
    return name if path.suffix in {".md", *_COPIED} else f"{name}.md"


def links(page: Path, text: str) -> Iterator[tuple[re.Match[str], Path, str]]:
    """Each link of a page to a file of the repository: where it stands, the file, and the heading with its `#`."""
    for found in _CODE_OR_LINK.finditer(text):
        path, sign, heading = unquote(found["to"] or "").partition("#")
        if path and not re.match(r"[a-z][a-z0-9+.-]*:", path):
            target = (page.parent / path).resolve()
            if target.is_relative_to(ROOT):
                yield found, target, sign + heading


def rewritten(page: Path, text: str) -> str:
    """The text with links that lead to the same within the site."""
    parts, end = list[str](), 0
    for found, target, heading in links(page, text):
        parts += text[end : found.start("to")], posixpath.relpath(place(target), posixpath.dirname(place(page)) or ".") + heading
        end = found.end("to")
    return "".join(parts) + text[end:]


def listed(directory: Path) -> str:
    """A directory as Markdown: what its README says, and its files."""
    readme = directory / "README.md"
    text = readme.read_text() if readme.exists() else f"# {directory.relative_to(ROOT).as_posix()}\n"
    files = [each for each in TRACKED if each.parent == directory and each != readme]
    return text + "\n" + "".join(f"- [{title(each)}]({each.name})\n" for each in files)


def title(path: Path) -> str:
    heading = re.search(r"^# (.+)$", path.read_text(), re.MULTILINE) if path.suffix == ".md" else None
    return heading[1] if heading else path.name


def written(path: Path) -> tuple[Path, str]:
    """The file that the links of a page start from, and the page's text."""
    if path.is_dir():
        return path / "README.md", listed(path)
    text = path.read_text()
    if path.suffix == ".md":
        return path, text
    fence = "`" * (3 + max(map(len, re.findall(r"`+", text)), default=0))
    return path, f"# {path.relative_to(ROOT).as_posix()}\n\n{fence}{_LANGUAGES.get(path.suffix, '')}\n{text.rstrip()}\n{fence}\n"


def navigation() -> str:
    """A section for each table of docs/README.md, with each page where it is linked first."""
    seen, text = set[Path](), ""
    for section, table in re.findall(r"^\| ([^|]+) \| \|\n((?:\|.*\n)+)", START.read_text(), re.MULTILINE):
        pages = dict.fromkeys(target for _, target, _ in links(START, table) if target.is_relative_to(DOCS) and target not in seen)
        seen |= pages.keys()
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {section.capitalize()}\n\n"
        text += "".join(f"{place(each)}\n" for each in pages) + "```\n"
    return text


def sources(into: Path) -> None:
    """Writes the pages of docs/, and what they lead to."""
    known = {*TRACKED, *(each.parent for each in TRACKED)}
    waiting, seen = [each for each in TRACKED if each.is_relative_to(DOCS) and each.suffix == ".md"], set[str]()
    while waiting:
        path = waiting.pop()
        target = into / place(path)
        if place(path) in seen or path not in known:
            continue
        seen.add(place(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in _COPIED:
            shutil.copy(path, target)
            continue
        start, text = written(path)
        waiting += [each for _, each, _ in links(start, text)]
        text = _DRAWING.sub("", rewritten(start, text))
        if path == START:
            text += navigation()
        elif path.is_dir() and path.is_relative_to(DOCS):
            text += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"
        elif not path.is_relative_to(DOCS):
            text = f"---\norphan: true\n---\n{text}"
        target.write_text(text)


def build(into: Path) -> int:
    if into.exists() and any(into.iterdir()) and not (into / ".buildinfo").exists():
        sys.exit(f"DIRECTORY: got {into} with other files in it, want an empty one or a site; name another")
    with tempfile.TemporaryDirectory() as work:
        pages = Path(work, "pages")
        sources(pages)
        shutil.rmtree(into, ignore_errors=True)
        site = Sphinx(pages, None, into, Path(work, "read"), "html", _SETTINGS, status=None, warningiserror=True)
        site.build()
        return site.statuscode


def main(arguments: list[str]) -> int:
    into = Path(arguments[0] if arguments else ROOT / "build" / "site").resolve()
    status = build(into)
    print(f"{'site' if status == 0 else 'failed'}: {into}/index.html")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
