"""When a recorded proof holds, and when it is stale."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs import ways
from tests.proofs.records import ROOT, Declared, Proof, ProofError, declared, stale, unique

CONDITIONS = {"date": "2026-01-02", "machine": {}, "command": "make proof NAME=thing", "versions": {}}


@pytest.fixture
def thing(tmp_path: Path) -> Declared:
    """A proof of a repository, with a result that holds."""
    for name in ("src/a.py", "src/deep/b.py", "tools/x/go.mod", "tools/x/main.go", "other.py", "tests/proofs/test_thing.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    made = Declared(Proof("thing", guards=("src", "tools/*/go.mod")), "tests/proofs/test_thing.py", tmp_path)
    record(made)
    return made


def record(proof: Declared, *, passed: bool = True) -> None:
    proof.write(passed=passed, conditions=CONDITIONS, figures={"wall_s": 1.5}, digests=proof.digests())


def test_a_result_holds_as_long_as_its_paths_are_as_they_were(thing: Declared) -> None:
    assert thing.stale() is None
    for name in ("other.py", "tools/x/main.go"):
        (thing.root / name).write_text("changed")
    (thing.root / "src" / "__pycache__").mkdir()
    (thing.root / "src" / "__pycache__" / "a.pyc").write_text("ignored by git")
    assert thing.stale() is None
    assert stale([thing]) == {}


def test_a_result_says_what_it_is_of(thing: Declared) -> None:
    document = json.loads(thing.record.read_text())
    head = subprocess.run(["git", "-C", str(thing.root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert document.pop("digests").keys() == {"src", "tools/*/go.mod", "tests/proofs/test_thing.py"}
    assert document == {"proof": "thing", "result": "passed", **CONDITIONS, "commit": head, "figures": {"wall_s": 1.5}}


@pytest.mark.parametrize(
    ("name", "guard"),
    [("src/deep/b.py", "src"), ("tools/x/go.mod", "tools/*/go.mod"), ("tests/proofs/test_thing.py", "tests/proofs/test_thing.py")],
)
def test_a_changed_file_makes_it_stale_and_the_same_content_again_does_not(thing: Declared, name: str, guard: str) -> None:
    before = (thing.root / name).read_text()
    (thing.root / name).write_text("changed")
    assert stale([thing]) == {"thing": f"thing: {guard} changed since 2026-01-02; make proof NAME=thing"}
    assert thing.uncommitted() == [name]
    (thing.root / name).write_text(before)
    assert thing.stale() is None
    assert thing.uncommitted() == []


def test_a_new_a_moved_and_a_deleted_file_make_it_stale(thing: Declared) -> None:
    (thing.root / "src" / "new.py").write_text("not committed")
    assert thing.stale() == "src changed since 2026-01-02"
    assert thing.uncommitted() == ["src/new.py"]
    (thing.root / "src" / "new.py").unlink()
    (thing.root / "src" / "a.py").rename(thing.root / "src" / "c.py")
    assert thing.stale() == "src changed since 2026-01-02"
    (thing.root / "src" / "c.py").unlink()
    assert thing.stale() == "src changed since 2026-01-02"


def test_of_markdown_the_commands_are_guarded_and_the_prose_is_not(thing: Declared) -> None:
    readme = thing.root / "src" / "README.md"
    readme.write_text("# Thing\n\n```sh\nmake up\n```\n")
    record(thing)
    readme.write_text("# The thing\n\nMore of it:\n\n```\nmake up\n```\n")
    assert thing.stale() is None
    readme.write_text("# Thing\n\n```\nmake up YES=1\n```\n")
    assert thing.stale() == "src changed since 2026-01-02"


def test_another_list_of_paths_makes_it_stale(thing: Declared) -> None:
    more = Declared(Proof("thing", guards=("src", "tools/*/go.mod", "other.py")), thing.file, thing.root)
    assert more.stale() == "other.py changed since 2026-01-02"


def test_a_failed_a_missing_and_a_broken_result_are_stale(thing: Declared) -> None:
    record(thing, passed=False)
    assert thing.stale() == "failed on 2026-01-02"
    thing.record.write_text('{"result": "pass')
    assert thing.stale() == "bench/results/proofs/thing.json is not JSON"
    thing.record.unlink()
    assert thing.stale() == "never run"


def test_a_guarded_path_that_nothing_matches_is_refused(thing: Declared) -> None:
    wrong = Declared(Proof("thing", guards=("srcs",)), thing.file, thing.root)
    with pytest.raises(ProofError, match=r"^tests/proofs/test_thing.py: got the guarded path srcs, which no file matches"):
        wrong.digests()


def test_a_name_is_used_once(thing: Declared) -> None:
    found: dict[str, Declared] = {}
    unique(found, thing)
    with pytest.raises(ProofError, match=r"^tests/proofs/test_b.py: got the name thing, which tests/proofs/test_thing.py has"):
        unique(found, Declared(Proof("thing", guards=("src",)), "tests/proofs/test_b.py", thing.root))


def test_every_proof_of_this_repository_is_declared_well() -> None:
    proofs = declared()
    assert {each.file for each in proofs} == {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "proofs").glob("test_*.py")}
    assert all(each.digests() for each in proofs)


def test_every_proof_has_its_fixtures() -> None:
    """A proof runs seldom: one that cannot begin would be found late."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--setup-plan", "-m", "proof", "tests/proofs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_result_belongs_to_a_proof() -> None:
    kept = {path.stem for path in (ROOT / "bench" / "results" / "proofs").glob("*.json")}
    assert kept <= {each.name for each in declared()}


def suite(directory: Path, *arguments: str) -> str:
    """What pytest says at the end of a suite of one test in `directory`, with our hooks."""
    (directory / "tests").mkdir()
    (directory / "tests" / "test_one.py").write_text("def test_one():\n    pass\n")
    (directory / "conftest.py").write_text("from tests.conftest import pytest_terminal_summary\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(directory), *arguments]
    done = subprocess.run(command, cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_whole_suite_ends_with_the_stale_proofs_once(tmp_path: Path) -> None:
    # With workers, since the suite has them, and each could say it.
    said = suite(tmp_path, "-n", "2", "tests/")
    lines = stale(declared())
    assert said.count("stale proofs") == (1 if lines else 0)
    for line in lines.values():
        assert said.count(line) == 1


def test_a_part_of_the_suite_says_nothing_of_proofs(tmp_path: Path) -> None:
    assert "stale proofs" not in suite(tmp_path, "tests/test_one.py")


def test_a_release_is_refused_while_a_proof_is_stale() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.proofs", "--check"], cwd=ROOT, capture_output=True, text=True)
    lines = stale(declared())
    assert (done.returncode, done.stderr) == (int(bool(lines)), "".join(f"stale: {line}\n" for line in lines.values()))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.proofs", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: NAME: got nothing, want one of {', '.join(each.name for each in declared())}\n"


def test_readme_has_the_commands_that_a_fresh_root_runs() -> None:
    assert {"git", "make", "python3-venv"} <= set(ways.readme_packages())
    for command in ("make up", "make down"):
        assert ways.readme_command(command) == command
