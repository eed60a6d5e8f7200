"""What the machine must be, before anything is written or fetched."""

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from modelfleet.report import UserError

CPU_FEATURES = frozenset({"avx2", "bmi2", "f16c", "fma"})
"""What llama.cpp was compiled for in the x86_64 wheel. Source: xllamacpp.get_system_info()."""
_LIBRARIES = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6"}
"""Shared libraries that the wheel takes from the machine, and Debian's packages of them. Source: ldd of its extension module."""
_WANT_DIRECTORY = "want one to write to; set XDG_CACHE_HOME to another one"
_RUN_BYTES = 30_000_000
"""What a run writes besides packages and model: byte code of the services (17 MB), their logs."""
_MACHINES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Facts:
    system: str
    machine: str
    libc: str
    """`glibc`, or empty for another one."""
    cpu_flags: Collection[str]
    absent_libraries: Collection[str]


def facts() -> Facts:
    linux = sys.platform == "linux"
    return Facts(
        platform.system(),
        platform.machine(),
        platform.libc_ver()[0],
        _cpu_flags() if linux else (),
        [name for name in _LIBRARIES if not _loads(name)] if linux else (),
    )


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def refusal(found: Facts) -> str:
    """Why llama.cpp's wheel does not run here, in one line; empty when it does."""
    if found.system != "Linux":
        return f"system: got {found.system}, want Linux; use a Linux machine, or a virtual one"
    if found.machine not in _MACHINES:
        return f"processor: got {found.machine}, want one of {', '.join(_MACHINES)}; there is no llama.cpp wheel for yours"
    if found.libc != "glibc":
        return "C library: got another one, musl perhaps, want glibc; there is no llama.cpp wheel for yours, use Debian, Fedora or the like"
    lacking = sorted(CPU_FEATURES - set(found.cpu_flags)) if found.machine == "x86_64" else []
    if lacking:
        return f"processor: got none of {', '.join(lacking)} in /proc/cpuinfo, want them for llama.cpp; use a machine of 2015 or newer"
    if found.absent_libraries:
        packages = " ".join(_LIBRARIES[name] for name in found.absent_libraries)
        return f"{', '.join(found.absent_libraries)}: got nothing, want it for llama.cpp; install it, on Debian: apt-get install {packages}"
    return ""


def require_usable() -> None:
    """Raises UserError."""
    if problem := refusal(facts()):
        raise UserError(problem)


def cache_path() -> Path:
    """Where everything that is fetched once lives: `$XDG_CACHE_HOME/modelfleet`, by default `~/.cache/modelfleet`."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given).absolute() / "modelfleet" if given else Path.home() / ".cache" / "modelfleet"
    except RuntimeError:
        raise UserError("HOME: got nothing, want a directory to write to; set XDG_CACHE_HOME") from None


def cache() -> Path:
    """The cache with its directory `try`, which is the user's alone. Raises UserError."""
    path = cache_path()
    own = path / "try"
    try:
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
        (path / "models").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename}: got {error.strerror}, {_WANT_DIRECTORY}") from None
    if not all(os.access(directory, os.W_OK) for directory in (own, path / "models")):
        raise UserError(f"{path}: got a directory that is not yours to write to, {_WANT_DIRECTORY}")
    require_room(path, _RUN_BYTES, "logs and byte code")
    return path


def require_room(path: Path, needed: int, what: str) -> None:
    """Raises UserError."""
    free = shutil.disk_usage(path).free
    if free < needed:
        got = f"{free / 1e6:.0f} MB free, want {needed / 1e6:.0f} MB for {what}"
        raise UserError(f"{path}: got {got}; free space, or set XDG_CACHE_HOME to another disk")


def free_memory() -> int:
    """Bytes that a new process may use."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
