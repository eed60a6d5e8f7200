"""The cache of what is made once: where it is, locks whose waits say for whom, and who uses it now."""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SAY_EVERY_S = 15.0
"""No command is silent for longer."""
_POLL_S = 0.2
IN_USE = ".in-use"
_held: dict[Path, int] = {}


def cache_root() -> Path:
    """Where everything that is made once lives: `$XDG_CACHE_HOME/modelfleet`, by default `~/.cache/modelfleet`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelfleet"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Alone with `what` while the block runs. A wait says at once, and every 15 s, which process is waited for."""
    handle = _acquire(path, fcntl.LOCK_EX, what)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)


def hold() -> None:
    """Say that this process uses the cache until it ends, so that nobody empties the cache meanwhile."""
    path = cache_root() / IN_USE
    if path not in _held:
        _held[path] = _acquire(path, fcntl.LOCK_SH, "the cache")


@contextmanager
def tried(path: Path) -> Iterator[bool]:
    """Whether nobody else has the lock; if so, it is held while the block runs."""
    handle = _try(path, fcntl.LOCK_EX)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def alone() -> Iterator[bool]:
    """Whether no process has said that it uses the cache; while the block runs, none can begin to."""
    path = cache_root() / IN_USE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tried(path) as held:
        yield held


def users() -> list[str]:
    """Other processes that run, have loaded or hold open a file of the cache, as far as this user may see them."""
    root = str(cache_root().resolve()) + "/"
    found: list[str] = []
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        links = [process / "exe", process / "cwd"]
        with suppress(OSError):
            links += (process / "fd").iterdir()
        used = any(_target(link).startswith(root) for link in links) or root in _loaded(process)
        if int(process.name) != os.getpid() and used:
            found.append(_process(int(process.name)))
    return found


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _loaded(process: Path) -> str:
    try:
        return (process / "maps").read_text(errors="replace")
    except OSError:
        return ""


def _process(pid: int) -> str:
    try:
        command = " ".join(Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").split())
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({command[:100]})"


def _try(path: Path, operation: int) -> int | None:
    """A descriptor that holds the lock, or None while another process has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
        # A lock file that was removed meanwhile keeps nobody out.
        if os.fstat(handle).st_ino == path.stat().st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None


def _acquire(path: Path, operation: int, what: str) -> int:
    started = time.monotonic()
    say_at = started
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _try(path, operation)
        if handle is not None:
            return handle
        if (now := time.monotonic()) >= say_at:
            say(f"{what}: waits for {_holder(path)}" + (f", {now - started:.0f} s so far" if now - started >= 1 else ""))
            say_at = now + SAY_EVERY_S
        time.sleep(_POLL_S)


def _holder(path: Path) -> str:
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        return "another process"
    return "another part of this command" if pid == os.getpid() else _process(pid)
