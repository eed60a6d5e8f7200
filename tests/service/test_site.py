"""The site of the documentation, as its one command builds it: whole, without a warning, and without anything of another host."""

import html
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS, SITE = ROOT / "docs", ROOT / "docs" / "site"
LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("object", "data")}
"""What a browser asks for by itself."""


def command() -> list[str]:
    """As docs/maintenance.md has it."""
    (line,) = re.findall(r"^\.venv/bin/uv run .*docs/site/build\.py$", (DOCS / "maintenance.md").read_text(), re.MULTILINE)
    return shlex.split(line)


def built(tree: Path, into: Path) -> subprocess.CompletedProcess[str]:
    """The command for the pages of a tree, with the packages of this one's lock."""
    words = [str(ROOT / each) if each in (".venv/bin/uv", "docs/site/site.lock") else each for each in command()]
    return subprocess.run([*words, str(into)], cwd=tree, capture_output=True, text=True)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.loaded, self.names = list[str](), list[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name"):
                self.names.add(value or "")
            elif (tag, name) in LOADED:
                self.loaded.append(value or "")
            elif name == "href" and value:
                self.links.append(value)


def shown(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("site") / "site"
    done = built(ROOT, into)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout == f"site: {into}/index.html\n"
    return into


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {each: Page(each.read_text()) for each in site.rglob("*.html")}


def broken(pages: dict[Path, Page], site: Path) -> Iterator[str]:
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme:
                continue
            names = pages[target].names if target in pages else set[str]()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in names):
                yield f"{path.relative_to(site)}: {link}"


def test_every_page_is_there_and_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    ours = {each.relative_to(DOCS).with_suffix(".html") for each in DOCS.rglob("*.md")} - {Path("README.html")}
    assert len(ours) >= 60
    assert {each for each in ours if not (site / each).is_file()} == set()
    assert list(broken(pages, site)) == []


def test_what_pages_link_to_outside_of_docs_is_in_it(site: Path) -> None:
    repository = site / "repository"
    assert "pulumi stack init search-team" in shown(repository / "examples" / "team" / "index.html")
    assert 'config = pulumi.Config("modelfleet-team")' in shown(repository / "examples" / "team" / "__main__.py.html")
    assert "What a change looks like" in shown(repository / "CONTRIBUTING.html")


def test_it_asks_no_other_host_for_anything(site: Path, pages: dict[Path, Page]) -> None:
    assert sum(len(page.loaded) for page in pages.values()) > 100
    assert [each for page in pages.values() for each in page.loaded if re.match(r"(\w+:)?//", each)] == []
    styles = "".join(each.read_text() for each in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"' ]*", styles) == []


def test_what_only_code_hosts_draw_is_left_out_and_its_table_is_there(site: Path) -> None:
    text = shown(site / "network.html")
    assert "flowchart" not in text
    assert "context-probe" in text


def test_its_search_knows_what_pages_say(site: Path) -> None:
    assert "restic" in (site / "searchindex.js").read_text()


SMALL = {
    "README.md": "# Start\n\n| use | |\n| --- | --- |\n| a page | [a](a.md) |\n",
    "a.md": "# A\n\n## Part\n\nSee [the part](#part), and [code](../code.py).\n",
}


def small(tmp_path: Path, **changed: str) -> Path:
    """A repository of two pages and a file, with changes by the names of pages."""
    tree = tmp_path / "tree"
    (tree / "docs" / "site").mkdir(parents=True)
    shutil.copy(SITE / "build.py", tree / "docs" / "site")
    (tree / "code.py").write_text("x = '```'\n")
    for name, text in (SMALL | {f"{name}.md": text for name, text in changed.items()}).items():
        (tree / "docs" / name).write_text(text)
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", tree, *words], check=True)
    (tree / "private.json").write_text("{}")
    return tree


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"a": "# A\n\n[gone](gone.md)\n"}, "gone.md"),
        ({"a": "# A\n\n[gone](../gone.py)\n"}, "gone.py"),
        ({"a": "# A\n\n[mine](../private.json)\n"}, "private.json"),
        ({"a": "# A\n\n[gone](README.md#gone)\n"}, "gone"),
        ({"b": "# B\n"}, "b.md: WARNING: document isn't included in any toctree"),
    ],
    ids=["page", "file", "a file that Git does not know", "heading", "a page that nothing leads to"],
)
def test_what_leads_nowhere_fails(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    done = built(small(tmp_path, **changed), tmp_path / "site")
    assert done.returncode == 1
    assert said in done.stderr


def test_a_small_one_is_whole_and_other_files_stay(tmp_path: Path) -> None:
    tree, into = small(tmp_path), tmp_path / "site"
    assert built(tree, into).returncode == 0
    assert "x = '```'" in shown(into / "repository" / "code.py.html")
    done = built(tree, tree)
    assert (done.returncode, (tree / "code.py").exists()) == (1, True)
    assert f"DIRECTORY: got {tree} with other files in it, want an empty one or a site; name another" in done.stderr
