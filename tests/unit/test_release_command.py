"""`make release`: what is collected, and what is refused before anything is built."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from infra.engine.errors import CommandError
from infra.preparation import release

CHANGES = "# Changes\n\n## Since 1.2.0\n\n- Later.\n\n## 1.2.0 (2026-01-02)\n\n- A thing.\n- Another — one.\n\n## 1.1.0\n\n- Before.\n"
REF = f"registry.example.com/fleet/ollama@sha256:{'1' * 64}"


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    return subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGES)
    (tmp_path / ".gitignore").write_text("/dist/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    return tmp_path


def tools(directory: Path) -> tuple[Path, str]:
    """Compiling them takes half an hour; devcluster's own tests write the real archive."""
    path = directory / "modelfleet-tools-abc.tar.gz"
    path.write_bytes(b"tools")
    return path, ""


def test_a_release_is_its_files_by_digest_its_commit_and_what_has_changed(root: Path) -> None:
    manifest = release.collect(root, "", release.wheel_of, tools)
    assert manifest == root / "dist" / "1.2.0" / "manifest.json"
    found = json.loads(manifest.read_text())
    assert (found["version"], found["commit"], found["images"]) == ("1.2.0", git(root, "rev-parse", "HEAD"), {})
    assert found["changes"] == "- A thing.\n- Another — one."
    assert found["committed"] == git(root, "show", "--no-patch", "--format=%cI", "HEAD")
    beside = {
        path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in manifest.parent.iterdir() if path != manifest
    }
    assert found["files"] == beside
    assert sorted(path.rpartition(".")[2] for path in beside) == ["gz", "whl"]
    # Once more, and without what was there.
    (manifest.parent / "left").touch()
    assert json.loads(release.collect(root, "", release.wheel_of, tools).read_text()) == found
    assert not (manifest.parent / "left").exists()
    assert [path.name for path in (root / "dist").iterdir()] == ["1.2.0"]


def never(_: Path) -> Path:
    raise AssertionError("built")


@pytest.mark.parametrize(
    ("file", "text", "committed", "error"),
    [
        ("new.py", "x", False, "git: got changes in new.py, want all of it committed"),
        ("CHANGELOG.md", CHANGES + "\n", False, "git: got changes in CHANGELOG.md, want"),
        ("CHANGELOG.md", "# Changes\n", True, "CHANGELOG.md: got no section '## 1.2.0', want what has changed"),
        ("CHANGELOG.md", "## 1.2.0\n\n## 1.1.0\n- x\n", True, "CHANGELOG.md: got an empty section '## 1.2.0'"),
        ("CHANGELOG.md", "## 1x2.0\n- x\n", True, "CHANGELOG.md: got no section"),
    ],
)
def test_what_is_not_ready_is_refused_before_anything_is_built(root: Path, file: str, text: str, committed: bool, error: str) -> None:
    (root / file).write_text(text)
    if committed:
        git(root, "commit", "-qam", "y")
    with pytest.raises(CommandError) as refusal:
        release.collect(root, "", never, tools)
    assert str(refusal.value).startswith(error)
    assert not (root / "dist").exists()


def test_images_are_named_by_their_digests() -> None:
    assert release.images({"modelfleet:images": {"refs": {"ollama": REF}}}, "prod") == {"ollama": REF}


@pytest.mark.parametrize(
    ("section", "error"),
    [
        (None, "STACK: got prod, which names no images"),
        ({"registry": "r"}, "STACK: got prod, which names no images"),
        (
            {"refs": {"ollama": "registry.example.com/ollama:latest"}},
            "modelfleet:images.refs.ollama: got registry.example.com/ollama:latest",
        ),
        ({"refs": {"ollama": REF[:-1]}}, "modelfleet:images.refs.ollama: got"),
    ],
)
def test_images_without_a_digest_are_refused(section: object, error: str) -> None:
    with pytest.raises(CommandError) as refusal:
        release.images({"modelfleet:images": section}, "prod")
    assert str(refusal.value).startswith(error)
