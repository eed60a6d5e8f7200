"""The gateway and the model server as two processes on loopback, for as long as a block runs."""

import hashlib
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_sync import gguf
from modelfleet import TREE, processes
from modelfleet.models import Model
from modelfleet.report import Step, UserError, ignore_signals, say

HOST = "127.0.0.1"
FIRST_PORT = 8000
_PORTS = 100
"""So many are tried from the first on."""
_STORED_AS = "try:model"
"""The model's name in the store of one run; requests name its id."""
_ATTEMPTS = 5
"""Between the choice of a port and its use, another program may take it."""
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServiceError(UserError):
    """A service does not run; its log stays."""


@dataclass(frozen=True)
class Service:
    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def require_running(self) -> None:
        """Raises ServiceError."""
        if (status := self.process.poll()) is None:
            return
        lines = [line.strip() for line in self.output.splitlines()]
        signs = ("error loading model", "error: ", " ERROR ")
        reasons = [line for sign in signs for line in lines if sign in line] or [line for line in lines[-1:] if line]
        said = reasons[0].rpartition(" ERROR ")[2].removeprefix("error: ")[:300] if reasons else "nothing"
        reason = f"{said} (exit status {status})"
        raise ServiceError(f"{self.name}: got {reason}, want it to run; see {self.log}")


@dataclass(frozen=True)
class Fleet:
    services: Sequence[Service]
    port: int
    key_file: Path
    model: Model

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    @property
    def page(self) -> str:
        """For people."""
        return f"http://{HOST}:{self.port}/"

    def require_running(self) -> None:
        """Raises ServiceError."""
        for service in self.services:
            service.require_running()

    def chat(self, question: str) -> str:
        """One answer through the gateway, as a client gets it. Raises ServiceError."""
        body = {"model": self.model.id, "messages": [{"role": "user", "content": question}], "max_tokens": 128, "temperature": 0}
        headers = {"Authorization": f"Bearer {self.key_file.read_text().strip()}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310 (our own)
        try:
            with _OPENER.open(request) as response:
                message: dict[str, Any] = json.load(response)["choices"][0]["message"]
        except urllib.error.HTTPError as error:
            with error:
                raise ServiceError(f"chat: got {error.read(1000).decode(errors='replace')}, want an answer; see {self._logs}") from None
        except OSError as error:
            raise ServiceError(f"chat: got {error}, want an answer; see {self._logs}") from None
        # A model that thinks first may not be done with that.
        return str(message.get("content") or message.get("reasoning_content") or "").strip()

    @property
    def _logs(self) -> Path:
        return self.services[0].log.parent


@contextmanager
def running(cache: Path, python: Path, model: Model, context: int, port: int | None) -> Iterator[Fleet]:
    """The model is loaded when the block starts. Raises UserError."""
    own = cache / "try"
    with _run_directory(own) as work:
        key_file = _key(own)
        keys = work / "keys"
        keys.write_text(json.dumps({"try": {"hash": _hashed(key_file)}}))
        store = work / "store"
        gguf.add(_STORED_AS, model.path, store, link=True)
        services: list[Service] = []
        try:
            step = Step("starting the gateway and the model server")
            for _ in range(_ATTEMPTS):
                public, internal, metrics = _public_port(port), _free_port(), _free_port()
                services = [
                    _start("model server", python, _model_server(internal, store, model, context), work),
                    _start("gateway", python, _gateway(public, metrics, internal, keys, model), work),
                ]
                if _start_both(services, step, f"port {internal} open", f"on port {public}"):
                    break
                processes.stop([service.process for service in services])
            else:
                raise UserError(f"ports: got {_ATTEMPTS} that other programs took first, want one each; try again, or give --port")
            _wait(services, Step(f"loading {model.path.name}"), lambda: _is_ready(internal))
            yield Fleet(services, public, key_file, model)
        finally:
            ignore_signals()
            processes.stop([service.process for service in services])


def _start_both(services: Sequence[Service], step: Step, *opened: str) -> bool:
    """Whether each has opened its port, as its own log says: another program may answer there. False when one was taken meanwhile.
    Raises ServiceError."""
    try:
        _wait(services, step, lambda: all(text in service.output for service, text in zip(services, opened, strict=True)))
    except ServiceError:
        if any("address already in use" in service.output for service in services):
            return False
        raise
    return True


def _start(name: str, python: Path, settings: dict[str, str], work: Path) -> Service:
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    if python != Path(sys.executable):
        # `make try` writes nothing into the checkout, and installs packages without their byte code.
        kept["PYTHONPYCACHEPREFIX"] = str(work.parent / "pycache")
    # What a library might write goes where the run's files go.
    env = kept | {"PYTHONPATH": str(TREE), "PYTHONSAFEPATH": "1", **dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(work))}
    module = {"model server": "model_server", "gateway": "api_server"}[name]
    prefix = module.upper()
    log = work / f"{module}.log"
    log.unlink(missing_ok=True)
    process = processes.start([str(python), "-m", module], env | {f"{prefix}_{key}": value for key, value in settings.items()}, work, log)
    return Service(name, process, log)


def _model_server(port: int, store: Path, model: Model, context: int) -> dict[str, str]:
    settings = {"HOST": HOST, "PORT": str(port), "MODELS_DIR": str(store), "MODEL": _STORED_AS, "MODEL_ID": model.id}
    # One request at a time has the whole context and all cores; more of them wait.
    return settings | {"CONTEXT_LENGTH": str(context), "PARALLEL": "1", "DRAIN_S": "1", "DRAIN_DELAY_S": "0"}


def _gateway(port: int, metrics: int, upstream: int, keys: Path, model: Model) -> dict[str, str]:
    routes = {model.id: {"url": f"http://{HOST}:{upstream}"}}
    settings = {"HOST": HOST, "PORT": str(port), "METRICS_PORT": str(metrics), "KEYS_FILE": str(keys), "ROUTES": json.dumps(routes)}
    return settings | {"DRAIN_S": "1", "DRAIN_DELAY_S": "0"}


def _wait(services: Sequence[Service], step: Step, is_done: Callable[[], bool]) -> None:
    """Without a limit: a large model takes its time, and a service that cannot go on ends. Raises ServiceError."""
    while not is_done():
        for service in services:
            service.require_running()
        step.tick()
        time.sleep(0.05)


def _is_ready(port: int) -> bool:
    try:
        with _OPENER.open(f"http://{HOST}:{port}/ready", timeout=2) as response:
            return response.status == 200
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return False


def _public_port(asked: int | None) -> int:
    """The gateway's. Raises UserError."""
    if asked is not None:
        if not (0 < asked < 65536 and _is_free(asked)):
            got = "in use or not allowed" if 0 < asked < 65536 else "no port"
            raise UserError(f"--port: got {asked}, {got}, want a free port; choose another one, or leave it out")
        return asked
    for port in range(FIRST_PORT, FIRST_PORT + _PORTS):
        if _is_free(port):
            if port != FIRST_PORT:
                say(f"port {FIRST_PORT} is taken, so the gateway gets {port}")
            return port
    raise UserError(f"ports: got none free of {FIRST_PORT}..{FIRST_PORT + _PORTS - 1}, want one; give --port")


def _free_port() -> int:
    """One that the kernel gives to no outgoing connection in the meantime."""
    while True:
        port = random.randrange(20000, 32768)  # noqa: S311 (no secret)
        if _is_free(port):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False


def _key(own: Path) -> Path:
    """The gateway's key: made once, so that clients need not be set anew, and read by its owner alone."""
    path = own / "key"
    with processes.locked(own / ".lock", "writing the key"):
        if not path.exists():
            fresh = own / ".key.partial"
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(24) + "\n")
            fresh.replace(path)
        path.chmod(0o600)
    return path


def _hashed(key_file: Path) -> str:
    """As the gateway knows it (api_server/keys.py)."""
    return hashlib.blake2b(key_file.read_bytes().strip(), digest_size=32).hexdigest()


@contextmanager
def _run_directory(own: Path) -> Iterator[Path]:
    """For the files of one run. It goes with the run, unless a log in it says why a service failed; the next run removes that."""
    with ExitStack() as held:
        with processes.locked(own / ".lock", "starting"):
            for old in own.glob("run-*"):
                with suppress(BlockingIOError), processes.holding(old):
                    shutil.rmtree(old, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix="run-", dir=own))
            held.enter_context(processes.holding(work))
        keep = False
        try:
            yield work
        except ServiceError:
            keep = True
            raise
        finally:
            if not keep:
                shutil.rmtree(work, ignore_errors=True)
