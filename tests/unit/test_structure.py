"""The house figures, read from the sources of infra/, components/ and the services, and the direction of every import of the first two."""

import ast
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from images import embedded

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("infra", "components") for path in (ROOT / package).rglob("*.py"))
OF_SERVICES = sorted(path for package in (*embedded.SERVICES.values(), "model_sync") for path in (ROOT / package).rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FUNCTION_LINES, FILE_LINES, SERVICE_FILE_LINES, COLUMNS, CONSTRUCTOR_MEDIAN = 60, 300, 250, 140, 25
PACKAGES = {
    "program": set(),
    "engine": {"program"},
    "analysis": {"program", "engine"},
    "lifecycle": {"program", "engine", "analysis", "preparation"},
    "preparation": {"program", "engine"},
    "documentation": {"program"},
}
"""Package of infra/ to those that it may import from, as infra/__init__.py says."""


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in SOURCES}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def imported(name: str) -> set[str]:
    """Modules of ours that a module imports, anywhere in it: within functions and for types alone, too."""
    found: set[str] = set()
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import name` is of the module `package.name` where there is one.
            found |= {each if (each := f"{source}.{alias.name}") in MODULES else source for alias in node.names}
    return found & MODULES.keys()


@pytest.mark.parametrize("path", SOURCES, ids=[path.relative_to(ROOT).as_posix() for path in SOURCES])
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE_LINES
    assert [(node.name, length(node)) for node in functions(path) if length(node) > FUNCTION_LINES] == []
    assert [number for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > COLUMNS] == []


@pytest.mark.parametrize("path", OF_SERVICES, ids=[path.relative_to(ROOT).as_posix() for path in OF_SERVICES])
def test_files_and_functions_of_services_are_shorter(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= SERVICE_FILE_LINES
    assert [(node.name, length(node)) for node in functions(path) if length(node) > FUNCTION_LINES] == []


def test_constructors_of_components_only_make_and_wire() -> None:
    lengths = [
        length(node)
        for path in SOURCES
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.ClassDef) and any(ast.unparse(base) == "pulumi.ComponentResource" for base in each.bases)
        for node in each.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    assert len(lengths) >= 13
    assert statistics.median(lengths) <= CONSTRUCTOR_MEDIAN


@pytest.mark.parametrize("path", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_lines_of_pages_are_short_but_for_tables_and_links(path: Path) -> None:
    long = [line for line in path.read_text().splitlines() if len(line) > COLUMNS and not line.lstrip().startswith("|")]
    assert [line for line in long if max(map(len, line.split())) <= COLUMNS] == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imported(name) for name in MODULES}
    assert graph["infra.program.stack"] >= {"infra.program.arguments", "infra.program.settings", "components"}
    assert graph["components.pods"] >= {"components.containers", "components.objects"}
    # Raises CycleError with the circle.
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", sorted(each for each in MODULES if each.startswith("infra.")))
def test_packages_of_infra_import_only_what_is_above_them(name: str) -> None:
    package = name.split(".")[1]
    used = {each.split(".")[1] for each in imported(name) if each.startswith("infra.")}
    assert used - {package} <= PACKAGES[package]


def loaded(program: str, path: str) -> set[str]:
    """Top packages that are loaded once a Python process has run the program."""
    last = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    environment = os.environ | {"PATH": path}
    done = subprocess.run([sys.executable, "-c", f"{program}\n{last}"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "program",
    [
        "import infra.program.stack",
        "import infra.analysis.preview",
        "import infra.lifecycle.explain",
        "import infra.lifecycle.__main__ as m; m.target('dev', 'west').deployment().cli.environment()",
    ],
    ids=["pulumi up", "make preview", "make explain", "make up CONTEXT"],
)
def test_who_has_a_cluster_and_a_pulumi_loads_nothing_of_the_embedded_cluster(program: str, tmp_path: Path) -> None:
    pulumi = tmp_path / "bin" / "pulumi"
    pulumi.parent.mkdir()
    pulumi.write_text("#!/bin/sh\necho v3.259.0\n")
    pulumi.chmod(0o755)
    state = f"import os; os.environ['XDG_STATE_HOME'] = {str(tmp_path)!r}\n"
    assert loaded(state + program, f"{pulumi.parent}:/usr/bin:/bin") & {"devcluster", "images"} == set()


def test_the_embedded_cluster_is_loaded_where_it_is_meant() -> None:
    assert loaded("import infra.lifecycle.__main__ as m; m.target('dev', '')", os.defpath) >= {"devcluster", "images"}
