"""The start of the embedded cluster killed at twenty random moments: the next `up` finishes it, or `down` removes it.

10 minutes, beside nothing else.
"""

import os
import random
import signal
import subprocess
import sys
import time
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
