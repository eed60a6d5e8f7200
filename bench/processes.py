"""Processes of a measurement: started, ended whatever happens, and what they take of the machine."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

_END_S = 10
"""For a process to end when it is asked to."""


def descendants(pid: int) -> list[int]:
    """The process and all that it started."""
    try:
        children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    except OSError:
        return []
    return [pid, *(each for child in children for each in descendants(child))]


def memory_bytes(pid: int) -> int:
    """Proportional set size of a process and all that it started. What the kernel keeps for its sockets is not in it."""
    rollups = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in descendants(pid)]
    return sum(int(line.split()[1]) * 1024 for text in rollups for line in text.splitlines() if line.startswith("Pss:"))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and all that it started, of their threads and of the kernel for them: to the nanosecond, where the clock
    ticks of /proc are 10 ms. The number of a process's CPU clock is made from its id, see clock_getcpuclockid(3)."""
    return sum(time.clock_gettime((~each << 3) | 2) for each in descendants(pid))


def allow_descriptors(wanted: int) -> None:
    """Raise the limit of open files, for this process and those that it starts. Exits where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(f"open files: got a hard limit of {hard}, want {wanted} or more; raise it with ulimit -Hn {wanted}, as root")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def end_with_us() -> None:
    """Have a SIGTERM end this program as Ctrl-C does: with every process that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextmanager
def started(argv: Sequence[str], env: Mapping[str, str], work: Path, **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """A program that runs until the block ends, in a group of its own; what it prints is in `work`/log."""
    with (work / "log").open("ab") as log:
        process = subprocess.Popen(argv, env=dict(env), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        try:
            yield process
        finally:
            # vLLM's workers leave the group.
            theirs = descendants(process.pid)[1:]
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            for end, each in ((os.killpg, process.pid), *((os.kill, child) for child in theirs)):
                with suppress(ProcessLookupError):
                    end(each, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: "subprocess.Popen[Any]", log: Path, limit_s: float = 120) -> None:
    """Until it answers. Raises SystemExit with what the process said when it does not."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{url}: got no 200, want it; its process said:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
