"""The Makefile decides from what is typed with the command, and whatever a message tells the user to run is there."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = sorted(set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)))
EXPORTED = {
    "CONTEXT": "prod",
    "STACK": "prod",
    "NODES": "3",
    "RUNTIME": "crio",
    "YES": "1",
    "TOOLS": "x",
    "ALLOW_DATA_LOSS": "y",
    "PULL_AUTH": "z",
    "NAME": "n",
    "REVOKE": "1",
    "DAYS": "30",
    "CSV": "1",
    "TO": "/mnt/backup",
    "FROM": "/mnt/backup",
    "SNAPSHOT": "1",
    "OF": "ollama-0",
    "SINCE": "1h",
    "FOLLOW": "1",
    "CONTAINER": "c",
    "PROMETHEUS": "http://prometheus.example",
    "TIER": "unit",
    "TAKE": "RuntimeClass/nvidia",
    "FORGET": "1",
    "MODEL": "model.gguf",
    "MODELS": "registry.example/models/a:1",
    "MIRROR": "mirror.example",
    "PORT": "1",
    "CHECK": "1",
    "IMAGE": "python:3",
}


def planned(*arguments: str, **exported: str) -> str:
    done = subprocess.run(
        ["make", "-n", *([] if "-B" in arguments else ["-o", ".venv/.stamp"]), *arguments],
        cwd=ROOT,
        env=os.environ | exported,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_only_exported_decides_nothing(target: str) -> None:
    """A shell with `export CONTEXT=prod` must not turn `make down` into the end of production."""
    assert planned(target, **EXPORTED) == planned(target)


def test_what_is_typed_decides() -> None:
    assert '--stack prod --context "west"' in planned("down", "CONTEXT=west", "STACK=prod")
    assert "--yes" not in planned("down", "CONTEXT=west")
    assert "--yes" in planned("up", "YES=1")
    assert "--nodes 1" in planned("up", "NODES=1")


def test_the_machine_is_looked_at_before_anything_is_fetched() -> None:
    first, *later = planned("up", "-B").splitlines()
    assert first.endswith("-m devcluster.host")
    assert any("pip install" in line for line in later)
    assert "devcluster.host" not in planned("up", "CONTEXT=west"), "a cluster of one's own asks nothing of this machine"


def test_the_word_about_slow_packages_ends_with_its_shell() -> None:
    (code,) = re.findall(r"-c '(import os.+still installing.+)' &", planned("up", "-B"))
    quick = code.replace("sleep(10)", "sleep(.05)")
    shell = subprocess.Popen(
        ["sh", "-c", f"{sys.executable} -c '{quick}' & echo $!; sleep 60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert shell.stdout is not None
    assert shell.stderr is not None
    word = int(shell.stdout.readline())
    assert shell.stderr.readline() == b"venv: still installing\n"
    # A child of a shell without a terminal ignores SIGINT, and a shell that is killed runs no trap.
    shell.kill()
    shell.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{word}").exists():
        assert time.monotonic() < deadline, "it speaks on, for ever"
        time.sleep(0.05)
    shell.stdout.close()
    shell.stderr.close()


def test_a_release_asks_first_whether_every_proof_holds() -> None:
    proofs, release = planned("release", "STACK=prod").splitlines()
    assert "tests.proofs --check" in proofs
    assert release.endswith('infra.preparation.release --stack "prod"')


def test_every_target_that_a_message_or_a_page_names_exists() -> None:
    files = [*ROOT.glob("README.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*.py"), *ROOT.glob("infra/**/*.py")]
    named = {
        (path.relative_to(ROOT).as_posix(), target)
        for path in files
        for target in re.findall(r"(?:`|run )make ([a-z][a-z-]*)", path.read_text())
    }
    assert {target for _, target in named} >= {"up", "down", "try"}
    assert {each for each in named if each[1] not in TARGETS} == set()
