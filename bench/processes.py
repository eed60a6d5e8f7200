"""Processes of a measurement: started, ended whatever happens, and what they take of the machine."""

import ctypes
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
"""For a process to end when it is asked to, or is killed."""
_PR_SET_CHILD_SUBREAPER = 36
"""Source: linux/prctl.h."""


class NotReady(SystemExit):
    """A program that did not answer in time, with what it waited for and what it said. It ends a measurement that does not catch it."""


def descendants(pid: int) -> list[int]:
    """The process and all that it started."""
    try:
        children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    except OSError:
        return []
    return [pid, *(each for child in children for each in descendants(child))]


def memory_bytes(pid: int) -> int:
    """Proportional set size of a process and all that it started. What the kernel keeps for its sockets is not in it."""
    return sum(map(_proportional_bytes, descendants(pid)))


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        # It has ended, and may wait for its parent to notice.
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and all that it started, of their threads and of the kernel for them: to the nanosecond, where the clock
    ticks of /proc are 10 ms."""
    return sum(own_cpu_s(each) for each in descendants(pid))


def own_cpu_s(pid: int) -> float:
    """As `cpu_s`, of the process alone; 0 when it has ended. The number of a process's CPU clock is made from its id, see
    clock_getcpuclockid(3)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


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
def all_ended() -> Iterator[None]:
    """Whatever was started in the block ends with it, killed if need be, also what left its group and outlived its parent.

    Such processes become children of this program, which is otherwise the nature of the first process of a machine alone.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = set(descendants(os.getpid()))
    try:
        yield
    finally:
        deadline = time.monotonic() + _END_S
        while left := [each for each in descendants(os.getpid()) if each not in before]:
            for each in left:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            for each in left:
                # One that another process started is ours to wait for once that one has ended.
                with suppress(ChildProcessError):
                    os.waitpid(each, os.WNOHANG)
            if time.monotonic() > deadline:
                raise NotReady(f"processes {left}: got them after SIGKILL for {_END_S} s, want none; end them by hand")
            time.sleep(0.01)


@contextmanager
def started(argv: Sequence[str], env: Mapping[str, str], work: Path, **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """A program that runs until the block ends, in a group of its own; what it prints is in `work`/log."""
    with (work / "log").open("ab") as log:
        process = subprocess.Popen(argv, env=dict(env), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: "subprocess.Popen[Any]", log: Path, limit_s: float = 120) -> None:
    """Until it answers. Raises NotReady with what the process said when it does not."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            why = f"no 200 for {limit_s:.0f} s" if process.poll() is None else f"the end of its process with {process.poll()}"
            raise NotReady(f"{url}: got {why}, want an answer; its process said:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
