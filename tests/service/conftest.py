"""Real engines with scripted models, a real cache server, and the API server in front of them."""

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from gguf import PoolingType

from components.cache import cache_conf, role_password, users_conf
from components.contract import CACHE_SERVER, PORTS
from images import embedded
from model_sync import gguf
from tests import tiny_gguf
from tests.service import ollama as ollama_process
from tests.service.processes import ROOT, Service, free_port, running

SCRIPT = "Hello from the tiny model."
PASSWORD = "a-password-for-tests"
KEY = "a-valid-key-for-tests"
TOOL = {"name": "get_weather", "arguments": {"location": "Boston"}}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with a model that says SCRIPT, one that calls TOOL, one for embeddings, one for scores,
    and two that never stop by themselves: a quick and a slow one (about 2 ms a token)."""
    work = tmp_path_factory.mktemp("store")
    gguf.add("tiny:1", tiny_gguf.make(work / "tiny.gguf", SCRIPT), work / "models")
    gguf.add("slow:1", tiny_gguf.make(work / "slow.gguf", "tick tock ", loop=True, layers=8, ff=2048), work / "models")
    call = f"<tool_call>\n{json.dumps(TOOL)}\n</tool_call>"
    gguf.add("tool:1", tiny_gguf.make(work / "tool.gguf", call), work / "models")
    gguf.add("loop:1", tiny_gguf.make(work / "loop.gguf", "tick tock ", loop=True), work / "models")
    gguf.add("rank:1", tiny_gguf.make(work / "rank.gguf", SCRIPT, pooling=PoolingType.RANK), work / "models")
    gguf.add("embed:1", tiny_gguf.make(work / "embed.gguf", SCRIPT, pooling=PoolingType.MEAN), work / "models")
    return work / "models"


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a cache server as the component configures it, with its users."""
    work, port = tmp_path_factory.mktemp("valkey"), free_port()
    with running_valkey(work, port):
        yield f"redis://127.0.0.1:{port}/0"


def as_user(url: str, role: str, work: Path) -> dict[str, str]:
    """Variables, without their prefix, of a client of the cache server."""
    secret = work / f"{role}-password"
    secret.write_text(role_password(PASSWORD, role))
    return {"CACHE_URL": url.replace("redis://", f"redis://{role}@"), "CACHE_PASSWORD_FILE": str(secret)}


def valkey_conf(work: Path, port: int, max_memory_bytes: int = 2**26, policy: str = "allkeys-lru") -> Path:
    """What the component gives the cache server, for a port of loopback."""
    conf = work / "cache.conf"
    (work / "auth.conf").write_text(f"requirepass {PASSWORD}\n")
    (work / "users.conf").write_text(users_conf(PASSWORD))
    lines = cache_conf(max_memory_bytes, policy).replace(f"port {PORTS[CACHE_SERVER]}", f"port {port}")
    conf.write_text(
        lines.replace("bind * -::*", "bind 127.0.0.1").replace("/etc/cache-auth", str(work)).replace("/etc/cache-users", str(work))
    )
    return conf


def await_valkey(port: int) -> None:
    deadline = time.monotonic() + 10
    with redis.Redis(port=port, password=PASSWORD, socket_timeout=5) as client:
        while True:
            try:
                client.ping()
                return
            except (redis.ConnectionError, redis.TimeoutError):
                assert time.monotonic() < deadline
                time.sleep(0.05)


@contextmanager
def running_valkey(
    work: Path, port: int, max_memory_bytes: int = 2**26, policy: str = "allkeys-lru"
) -> "Iterator[subprocess.Popen[bytes]]":
    """The cache server at a port of loopback, until the block ends."""
    conf = valkey_conf(work, port, max_memory_bytes, policy)
    with subprocess.Popen([embedded.valkey(), conf], stdout=subprocess.DEVNULL) as process:
        try:
            await_valkey(port)
            assert process.poll() is None, f"another program has port {port}"
            yield process
        finally:
            # It may have been stopped.
            process.kill()


@pytest.fixture(scope="session")
def clients_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with clients of others, whose versions do not agree with ours."""
    uv, target = Path(sys.executable).parent / "uv", tmp_path_factory.mktemp("clients") / "venv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, target], check=True)
    lock = ROOT / "tests" / "service" / "clients.lock"
    subprocess.run([uv, "pip", "install", "-q", "--python", target / "bin" / "python", "--require-hashes", "-r", lock], check=True)
    return target / "bin" / "python"


ModelServerFactory = Callable[..., Service]
ApiServerFactory = Callable[..., Service]


def start_model_server(
    stack: ExitStack,
    store: Path,
    work: Path,
    model: str,
    ready: str = "/ready",
    process: Mapping[str, str] | None = None,
    **env: str,
) -> Service:
    """A model server that runs until the stack is closed; its log is in `work`. `process`: its environment beside its settings."""
    port = int(env.get("PORT") or free_port())
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "MODELS_DIR": str(store), "MODEL": model, "CONTEXT_LENGTH": "2048", **env}
    log = work / f"model-server-{port}.log"
    variables = {f"MODEL_SERVER_{key}": value for key, value in settings.items()} | dict(process or {})
    return stack.enter_context(running("model_server", port, variables, log, ready, settings["HOST"]))


def start_api_server(
    stack: ExitStack,
    work: Path,
    routes: dict[str, dict[str, object]],
    ready: str = "/ready",
    process: Mapping[str, str] | None = None,
    files: int = 0,
    group: Path | str = "",
    module: str = "api_server",
    **env: str,
) -> Service:
    """An API server that runs until the stack is closed; its keys and its log are in `work`. `process`: its environment beside its
    settings. `files`, `group` and `module`: as in `running`."""
    keys = work / "keys"
    if not keys.exists():
        keys.write_text(f"{KEY}\n\n")
    port, metrics_port = (int(env.get(name) or free_port()) for name in ("PORT", "METRICS_PORT"))
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "METRICS_PORT": str(metrics_port),
        "KEYS_FILE": str(keys),
        "ROUTES": json.dumps(routes),
        "DRAIN_DELAY_S": "0.5",
        **env,
    }
    variables = {f"API_SERVER_{key}": value for key, value in settings.items()} | dict(process or {})
    ca = Path(env["TLS_DIR"]) / "ca.crt" if "TLS_DIR" in env else None
    service = stack.enter_context(running(module, port, variables, work / "api-server.log", ready, files=files, ca=ca, group=group))
    service.metrics_url = f"http://127.0.0.1:{metrics_port}"
    return service


@pytest.fixture
def model_server(store: Path, tmp_path: Path) -> Iterator[ModelServerFactory]:
    """Starts model servers: `model_server("tiny:1", PARALLEL="1")`."""
    with ExitStack() as stack:
        yield functools.partial(start_model_server, stack, store, tmp_path)


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServerFactory]:
    with ExitStack() as stack:
        yield functools.partial(start_api_server, stack, tmp_path)


@pytest.fixture(scope="session")
def ollama_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ollama_process.install(tmp_path_factory.mktemp("ollama"))


@pytest.fixture(scope="session")
def ollama(ollama_program: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One Ollama with the models of `store` and a context of 2048 tokens."""
    with ollama_process.running(ollama_program, store, tmp_path_factory.mktemp("ollama-home")) as service:
        yield service
