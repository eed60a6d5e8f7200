"""Child processes that never outlive us, and files that one of several at once may change."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from modelfleet.report import Step, UserError

_POLL_S = 0.05
_STOP_S = 5.0
"""From SIGTERM to SIGKILL."""


def start(argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> "subprocess.Popen[bytes]":
    """In a process group of its own: Ctrl-C in the terminal reaches us alone, and we end it. Its output is added to `log`."""
    guarded = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), str(os.getpid()), *argv]
    with log.open("ab") as output:
        return subprocess.Popen(
            guarded, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )  # fmt: skip


def stop(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End them all, with what they started."""
    running = [child for child in children if child.poll() is None]
    for child in running:
        child.terminate()
    deadline = time.monotonic() + _STOP_S
    for child in running:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            # It is not waited for yet, so its number is still that of its group.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def run(argv: Sequence[str], env: Mapping[str, str], work: Path, step: Step, detail: Callable[[], str]) -> str:
    """Run to the end. Returns why it failed, and nothing if it did not."""
    log = work / "command.log"
    child = start(argv, env, work, log)
    try:
        while child.poll() is None:
            step.tick(detail)
            time.sleep(_POLL_S)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return "" if child.returncode == 0 else _reason(log.read_text(errors="replace")) or f"exit status {child.returncode}"


def _reason(output: str) -> str:
    """What pip, uv or venv gave as the error, with the innermost cause, where uv names causes."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:]
    causes = [line for line in lines if line.lower().startswith("cause")]
    return "; ".join([each[:300] for each in (*errors[-1:], *causes[-1:])]).removeprefix("ERROR: ").removeprefix("error: ")


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """One process at a time; the lock dies with its holder. `what` the holder does is said while we wait."""
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _wait_for(handle.fileno(), Step(f"waiting for another process that is {what}"))
        except OSError as error:
            raise UserError(f"{path}: got {error.strerror}, want a file system with locks; set XDG_CACHE_HOME to another one") from None
        yield


@contextmanager
def holding(directory: Path) -> Iterator[None]:
    """Mark it as in use, until the block or this process ends. Raises BlockingIOError when another process does."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _wait_for(handle: int, step: Step) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            step.tick()
            time.sleep(_POLL_S)
        else:
            return


def tree_bytes(path: Path) -> int:
    """Of all files below; those that vanish meanwhile count nothing."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += Path(directory, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total
