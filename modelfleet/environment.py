"""From a checkout: a Python environment with the few packages that `try` needs, made once in the cache. The wheel has them already."""

import hashlib
import importlib.util
import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from modelfleet import FROM_WHEEL, TREE, host, processes
from modelfleet.report import Step, UserError

LOCK = TREE / "modelfleet" / "requirements.lock"
BOOTSTRAP = TREE / "requirements-bootstrap.lock"
"""uv, which installs the rest."""
_NEEDED_BYTES = 250_000_000
"""The environment takes 190 MB; the packages lie beside it while they are installed."""


def python(cache: Path) -> Path:
    """A Python that has the packages: this one, or that of the environment, which is made if it is not there. Raises UserError."""
    if FROM_WHEEL or _has_locked_packages():
        return Path(sys.executable)
    directory = cache / "try" / f"venv-{_key()}"
    with processes.locked(cache / "try" / ".venv.lock", "installing the same packages"):
        complete = directory / ".complete"
        if not complete.exists():
            _make(directory)
            complete.touch()
    return directory / "bin" / "python"


def _has_locked_packages() -> bool:
    """Whether this very Python has every package of the lock in its version."""
    try:
        return all(metadata.version(name) == version for name, version in pins(LOCK.read_text()))
    except metadata.PackageNotFoundError:
        return False


def pins(lock: str) -> list[tuple[str, str]]:
    """Name and version of each package of a requirements file with hashes."""
    return re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", lock, re.MULTILINE)


def _key() -> str:
    """Another lock or another Python needs another environment."""
    return hashlib.sha256(LOCK.read_bytes() + f"{sys.version}{sys.base_prefix}".encode()).hexdigest()[:12]


def _make(directory: Path) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        raise UserError("ensurepip: got nothing, want it to make a Python environment; on Debian: apt-get install python3-venv")
    shutil.rmtree(directory, ignore_errors=True)
    host.require_room(directory.parent, _NEEDED_BYTES, "the Python packages")
    directory.mkdir()
    step = Step("installing the locked Python packages, once")
    try:
        temporary = directory / "tmp"
        temporary.mkdir()
        # No cache and no temporary file outside of our own directory.
        env = os.environ | {"TMPDIR": str(temporary), "UV_CACHE_DIR": str(temporary / "uv"), "PIP_NO_CACHE_DIR": "1"}
        env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        made = str(directory / "bin" / "python")
        locked = ["--require-hashes", "--only-binary", ":all:"]
        for argv in (
            [sys.executable, "-m", "venv", str(directory)],
            [made, "-m", "pip", "install", "-q", "--no-compile", "--retries", "2", *locked, "-r", str(BOOTSTRAP)],
            # It takes a tenth of pip's time.
            [str(directory / "bin" / "uv"), "pip", "install", "-q", "--python", made, *locked, "-r", str(LOCK)],
        ):
            problem = processes.run(argv, env, directory, step, lambda: f"{processes.tree_bytes(directory) / 1e6:.0f} MB")
            if problem:
                raise UserError(f"{LOCK.name}: got {problem!r}, want its packages installed; check the network and the package index")
        shutil.rmtree(temporary)
        (directory / "command.log").unlink()
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
