"""What a preview compares with, in repositories of different shapes."""

import subprocess
from pathlib import Path

import pytest

from infra.analysis import preview
from infra.engine.errors import CliError


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(preview, "ROOT", tmp_path)
    git(tmp_path, "init", "-q", "-b", "trunk")
    golden = tmp_path / "tests" / "golden" / "dev"
    golden.mkdir(parents=True)
    (golden / "one.yaml").write_text("kind: One\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_there_may_be_nothing_to_compare_with(repository: Path) -> None:
    assert preview.base_ref("") is None


def test_the_remotes_main_comes_before_the_local_one(repository: Path) -> None:
    git(repository, "branch", "main")
    assert preview.base_ref("") == "main"
    git(repository, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert preview.base_ref("") == "origin/main"
    assert preview.base_ref("trunk") == "trunk"


@pytest.mark.parametrize("ref", ["nowhere", "-h", "trunk; true"])
def test_a_ref_that_does_not_exist_is_named(repository: Path, ref: str) -> None:
    with pytest.raises(CliError, match=r"^BASE: got .+, want a git ref of this repository; fetch it"):
        preview.base_ref(ref)


def test_the_base_is_where_the_branch_left_it(repository: Path) -> None:
    git(repository, "switch", "-qc", "branch")
    git(repository, "switch", "-q", "trunk")
    (repository / "tests" / "golden" / "dev" / "two.yaml").write_text("kind: Two\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "later")
    git(repository, "switch", "-q", "branch")
    assert preview.reviewed("trunk", "dev") == [{"kind": "One"}]


def test_a_stack_that_the_base_does_not_have_is_new(repository: Path) -> None:
    assert preview.reviewed("trunk", "prod") == []
