"""vLLM's own tier of files, bounded: the keeper or a writer is killed at random 240 times while engines write at full speed. 6 minutes, 7 GB
of disk.

No engine on a GPU is in it: vLLM moves blocks between a GPU and its host's memory there. What stands behind that memory is all here: vLLM's
tier with its threads and its layout of files, our part in it, and the keeper.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.proofs.records import ROOT, Proof

PROOF = Proof("keeper", guards=("model_server/tier", "tests/proofs/tier_writer.py", "tests/proofs/vllm.lock"))
MIB = 1 << 20
LIMIT, BLOCK, YOUNG_S = 64 * MIB, 256 * 1024, 2.0
ROUNDS = 240
WRITERS = 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which tells at any moment what it holds."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * LIMIT}", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


class Keeper:
    def __init__(self, directory: Path) -> None:
        self._state = directory.parent / "state"
        self._env = {"PATH": os.environ["PATH"], "KEEPER_DIRECTORY": str(directory), "KEEPER_LIMIT_MIB": str(LIMIT // MIB)}
        self._env |= {"KEEPER_YOUNG_S": str(YOUNG_S), "KEEPER_PERIOD_S": "0.05", "KEEPER_STATE_FILE": str(self._state)}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "model_server.tier.keeper"], cwd=ROOT, env=self._env)

    def kill(self) -> None:
        assert self.process.poll() is None, "it had ended by itself"
        self.process.kill()
        self.process.wait()

    def said(self) -> dict[str, Any]:
        return json.loads(self._state.read_text())


class Writers:
    """Processes of vLLM's Python, forked from one that has imported it."""

    def __init__(self, python: Path, directory: Path, log: Path) -> None:
        argv = [python, "-m", "tests.proofs.tier_writer", directory, str(BLOCK), str(YOUNG_S)]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._log = log.open("w")
        self._parent = subprocess.Popen(argv, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True)
        self.pids: list[int] = []

    def _asked(self, line: str) -> int:
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.write(f"{line}\n")
        self._parent.stdin.flush()
        said = self._parent.stdout.readline().strip()
        assert said.lstrip("-").isdigit(), f"a writer says: {said!r}"
        return int(said)

    def start(self) -> None:
        self.pids.append(self._asked("start"))

    def kill(self, pid: int) -> None:
        """It must have been alive until now."""
        self.pids.remove(pid)
        assert os.WTERMSIG(self._asked(str(pid))) == signal.SIGKILL

    def end(self) -> None:
        while self.pids:
            self.kill(self.pids[0])
        self._parent.kill()
        self._parent.communicate()
        self._log.close()


class Watch(threading.Thread):
    """What the file system holds at most, looked at all the time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory, self.most, self.looks, self.ended = directory, 0, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.0005):
            found = os.statvfs(self.directory)
            self.most = max(self.most, (found.f_blocks - found.f_bfree) * found.f_frsize)
            self.looks += 1


def test_it_is_never_above_its_limit_and_never_takes_what_is_at_work(
    vllm_python: Path, disk: Path, tmp_path: Path, figures: dict[str, Any]
) -> None:
    numbers, killed = random.Random(1), Counter[str]()  # noqa: S311
    keeper, writers, watch = Keeper(disk), Writers(vllm_python, disk, tmp_path / "log"), Watch(disk)
    watch.start()
    written = 0.0
    try:
        for _ in range(WRITERS):
            writers.start()
        for _ in range(ROUNDS):
            time.sleep(numbers.uniform(0.1, 1.2))
            if numbers.random() < 0.75:
                keeper.kill()
                keeper.start()
                killed["keeper"] += 1
            else:
                writers.kill(numbers.choice(writers.pids))
                writers.start()
                killed["writer"] += 1
            assert watch.most <= LIMIT + BLOCK, f"{watch.most - LIMIT} bytes above the limit, after {killed}"
        # It goes on as if nothing had been: files go, and more are written.
        time.sleep(5)
        first = keeper.said()
        time.sleep(10)
        then = keeper.said()
        written = then["removed_bytes"] - first["removed_bytes"]
        assert (then["gauges"]["writers"], then["gauges"]["keeper_failing"], written > LIMIT / 4) == (WRITERS, 0, True), then
    finally:
        writers.end()
        keeper.kill()
        watch.ended.set()
    assert watch.most <= LIMIT + BLOCK
    figures["kills"] = dict(killed)
    figures["limit, bytes"], figures["one file, bytes"], figures["most that there was, bytes"] = LIMIT, BLOCK, watch.most
    figures["looks at the file system"] = watch.looks
    figures["bytes written a second at the end"] = round(written / 10)
