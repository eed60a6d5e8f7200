"""The real Ollama on loopback, with the engine that our embedded image gives it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from devcluster import go, toolchain
from tests.service.processes import ROOT, Service, free_port

_SOURCE = ROOT / "tools" / "ollama"


def _environment() -> dict[str, str]:
    """Of the Go that builds our tools: the machine may have none."""
    return go.environment(toolchain.BY_NAME["ollama"].go_version) | {"CGO_ENABLED": "1"}


def module() -> Path:
    """Ollama's source, in the version that we build; downloaded if need be."""
    return go.module_dir(_SOURCE, "github.com/ollama/ollama", _environment())


def integration_tests(target: Path) -> Path:
    """Ollama's own tests of a running server, compiled from the same module; 15 s once Ollama itself is built."""
    program = target / "integration.test"
    build = ("test", "-c", "-mod=readonly", "-tags", "integration,fast", "-o", str(program))
    go.output([*build, "github.com/ollama/ollama/integration"], _SOURCE, _environment())
    return program


def install(target: Path) -> Path:
    """Ollama looks for its engine beside itself, so both are put into one tree. Returns the program."""
    program, engine = target / "bin" / "ollama", target / "lib" / "ollama" / "llama-server"
    for path in (program, engine):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(toolchain.ensure(["ollama"]) / "ollama", program)
    engine.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/images/ollama/llama_server.py "$@"\n')
    engine.chmod(0o755)
    return program


@contextmanager
def running(program: Path, store: Path, work: Path, port: int = 0, **env: str) -> Iterator[Service]:
    """`ollama serve` on the store, as the fleet runs it: read-only, no pruning, no cloud, models stay loaded."""
    port = port or free_port()
    log = work / f"ollama-{port}.log"
    settings = {
        "PATH": os.environ["PATH"],
        "HOME": str(work),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(store),
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_CONTEXT_LENGTH": "2048",
        "LLAMA_ARG_CACHE_RAM": "64",
        **env,
    }
    with (
        log.open("ab") as handle,
        subprocess.Popen([str(program), "serve"], env=settings, stdout=handle, stderr=handle, start_new_session=True) as process,
    ):
        service = Service(process, f"http://{settings['OLLAMA_HOST']}", log)
        try:
            service.wait_for("/api/version")
            yield service
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(20)


def context_of(service: Service, model: str) -> int:
    """Tokens that the model is loaded for; 0 while it is not."""
    for entry in httpx.get(f"{service.url}/api/ps", timeout=10).json()["models"]:
        if entry["name"] == model:
            return int(entry["context_length"])
    return 0


def load(service: Service, model: str) -> None:
    deadline = time.monotonic() + 60
    while httpx.post(f"{service.url}/api/generate", json={"model": model}, timeout=60).status_code != 200:
        assert time.monotonic() < deadline, service.log.read_text()
