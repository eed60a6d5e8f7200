"""The start of the embedded cluster, killed at twenty random moments, and on a disk that fills up at six: the next `up` finishes it, or
`down` removes it.

15 minutes, beside nothing else.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster import cluster as embedded
from devcluster import layout
from infra import ROOT
from tests import machine
from tests.cluster.kube import eventually
from tests.proofs.records import Proof

PROOF = Proof("cluster-kills", guards=("devcluster", "tests/machine.py"))
NAME = f"test-{os.getpid()}-kills"
MOMENTS = 20
FULL_AT = 6
DISK = "5g"
"""Enough for what `up` asks of the disk before it begins, also beside what a start that failed has left."""


def start() -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "devcluster", "--name", NAME, "up", "--nodes", "1"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished() -> None:
    with start() as process:
        said = process.communicate(timeout=180)[1]
    assert process.returncode == 0, said
    cluster = layout.load(NAME)
    assert cluster is not None
    assert embedded.not_ready(cluster) == []


def removed(before: dict[str, set[str]]) -> None:
    embedded.down_named(NAME)
    eventually(lambda: machine.difference(before, machine.snapshot()), lambda found: not found, 30, "the machine is as it was")
    assert not (layout.clusters_dir() / NAME).exists()


@pytest.mark.timeout(3600)
def test_a_start_that_was_killed_at_a_random_moment_is_finished_or_removed(figures: dict[str, Any]) -> None:
    before = machine.snapshot()
    started_at = time.monotonic()
    try:
        finished()
        whole_s = time.monotonic() - started_at
        removed(before)
        seed = int(os.environ.get("SEED") or time.time())
        draw = random.Random(seed)  # noqa: S311 (not a secret)
        figures |= {"seed": seed, "whole_s": round(whole_s, 1), "killed": []}
        for number, moment in enumerate(sorted(draw.uniform(0, whole_s) for _ in range(MOMENTS))):
            with start() as process:
                time.sleep(moment)
                ended_before = process.poll() is not None
                if not ended_before:
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            then = "up" if number % 2 else "down"
            figures["killed"].append({"after_s": round(moment, 1), "ended_before": ended_before, "then": then})
            if then == "up":
                finished()
            removed(before)
    finally:
        embedded.down_named(NAME)
    ended_before = [each for each in figures["killed"] if each["ended_before"]]
    assert len(ended_before) <= MOMENTS / 4, f"moments after the end, seed {seed}"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small file system that holds the state of clusters."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0755", "modelfleet-test", tmp_path], check=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield tmp_path
    embedded.down_named(NAME)
    subprocess.run(["umount", tmp_path], check=True)


def fill(filler: Path) -> None:
    """Take all that is left. Others free and take some meanwhile, so there may be less than was asked for, and next to nothing is."""
    with filler.open("wb") as file:
        while free := shutil.disk_usage(filler.parent).free:
            try:
                os.posix_fallocate(file.fileno(), 0, free)
                return
            except OSError as error:
                assert error.errno == errno.ENOSPC, error


@pytest.mark.timeout(3600)
def test_a_start_whose_disk_fills_up_says_so_and_is_finished_or_removed(figures: dict[str, Any], disk: Path) -> None:
    before = machine.snapshot()
    started_at = time.monotonic()
    finished()
    whole_s = time.monotonic() - started_at
    removed(before)
    figures |= {"full": []}
    filler = disk / "filler"
    for number in range(FULL_AT):
        moment = whole_s * number / FULL_AT
        with start() as process:
            time.sleep(moment)
            ended_before = process.poll() is not None
            fill(filler)
            said = process.communicate(timeout=300)[1]
        then = "up" if number % 2 else "down"
        figures["full"].append({"after_s": round(moment, 1), "ended_before": ended_before, "status": process.returncode, "then": then})
        assert "Traceback" not in said, said
        if process.returncode:
            assert "error: " in said, said
        filler.unlink()
        if then == "up":
            finished()
        removed(before)
    assert any(each["status"] for each in figures["full"]), "no disk was full in time"
