"""What stands between clients and a model server in a measurement: our API server, nginx, vllm-router and LiteLLM.

The peers come from hashed locks (bench/peers) and from Debian, into a directory that is removed again. Each runs as its makers ship it,
with what the measurement needs: many connections, no buffering. Only our own and LiteLLM's look at keys.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import Server
from bench.processes import started, wait_for
from bench.upstream import MODEL
from devcluster import packages
from tests.service.processes import ROOT, free_port

KEY, OTHER_KEY = "sk-a-key-of-the-benchmark", "sk-another-key-of-the-benchmark"
CONNECTIONS = 12_000
"""Of clients, that a proxy must be able to hold."""
CONTEXT = 131_072
_NOBODY = 65534
_LOCKS = Path(__file__).parent / "peers"
_PYTHON = "/usr/bin/python3"
"""Debian's, which the image has, and LiteLLM too: the Python of a virtual environment may have been compiled without optimisations."""
_BASE = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Proxy:
    """One that runs."""

    name: str
    servers: tuple[Server, ...]
    """It, as each key sees it."""
    pid: int

    @property
    def server(self) -> Server:
        """With the first key."""
        return self.servers[0]


@dataclass(frozen=True)
class Installed:
    """One that can be started."""

    name: str
    version: str
    start: Callable[[str, Path, int], tuple[list[str], Mapping[str, str]]]
    """Its command and environment in front of a server's URL, with a directory of its own, on a port."""
    ready: str
    """A path that answers 200 once it serves."""
    unprivileged: bool = False
    keys: tuple[str, ...] = (KEY,)
    """That it takes."""

    @contextmanager
    def running(self, upstream: str, work: Path) -> Iterator[Proxy]:
        """Until the block ends. Raises SystemExit when it does not come up."""
        directory, port = work / f"run-{self.name}", free_port()
        directory.mkdir()
        argv, env = self.start(upstream, directory, port)
        options = {}
        if self.unprivileged and os.geteuid() == 0:
            for path in (directory, *directory.rglob("*")):
                os.chown(path, _NOBODY, _NOBODY)
            options = {"user": _NOBODY, "group": _NOBODY, "extra_groups": ()}
        with started(argv, {**_BASE, "HOME": str(directory), **env}, directory, cwd=ROOT, **options) as process:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}{self.ready}", process, directory / "log")
            yield Proxy(self.name, tuple(Server(url, key) for key in self.keys), process.pid)


def ours(work: Path, agreement: Mapping[str, str]) -> Installed:
    """Our API server, with its own lock, as in its pod (components/api_server.py): an Ollama's model, so that prompts are measured against
    the context too, keys with limits, lines before servers, admission by memory, and `agreement`, by which the cache server is reached.

    The memory of a pod has room for a thousand connections. Here it is 12,000, or a third of the files that it may open, of which each of
    the two keys may have half.
    """

    python, version = _environment("aiohttp", work, ROOT / "api_server" / "requirements.lock")

    def start(upstream: str, directory: Path, port: int) -> tuple[list[str], Mapping[str, str]]:
        keys = directory / "keys"
        limits = dict.fromkeys(("requestsPerMinute", "tokensPerMinute"), 10**9) | {"concurrency": 10**6}
        digests = [hashlib.blake2b(key.encode(), digest_size=32).hexdigest() for key in (KEY, OTHER_KEY)]
        keys.write_text(json.dumps({f"bench-{digest[:4]}": {"hash": digest, **limits} for digest in digests}))
        route = {"url": upstream, "engine": "ollama", "context_length": CONTEXT, "max_in_flight": 10_000, "slots": 10_000}
        settings = {"HOST": "127.0.0.1", "PORT": port, "METRICS_PORT": free_port(), "KEYS_FILE": keys, "ROUTES": json.dumps({MODEL: route})}
        settings |= {"MAX_CONNECTIONS": CONNECTIONS, "QUEUE_S": 60, "DRAIN_DELAY_S": 0, "DRAIN_S": 0, **agreement}
        return [str(python), "-m", "api_server"], {f"API_SERVER_{name}": str(value) for name, value in settings.items()}

    return Installed("api_server", version, start, "/ready", keys=(KEY, OTHER_KEY))


def nginx(work: Path) -> Installed:
    """Debian's, unpacked, with the settings of docs/gateway.md. It needs no rights, and has none."""
    # Where root keeps its cache nobody else can read.
    program = shutil.copy(packages.nginx(), work / "nginx")
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr

    def start(upstream: str, directory: Path, port: int) -> tuple[list[str], Mapping[str, str]]:
        temporary = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (directory / "nginx.conf").write_text(
            f"""daemon off; worker_processes auto; pid {directory}/pid; error_log stderr;
events {{ worker_connections {2 * CONNECTIONS}; }}
http {{
{temporary} access_log {directory}/access.log; client_max_body_size 32m;
upstream model {{ server {upstream.removeprefix("http://")}; keepalive 64; }}
server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 3600s;
}} }} }}
"""
        )
        return [str(program), "-p", str(directory), "-e", "stderr", "-c", "nginx.conf"], {}

    return Installed("nginx", said.strip().partition("/")[2], start, "/health", unprivileged=True)


def _environment(name: str, work: Path, lock: Path) -> tuple[Path, str]:
    """The Python of a virtual environment with what a lock holds, and the version of the package of that name in it."""
    uv, target = Path(sys.executable).with_name("uv"), work / name
    subprocess.run([uv, "venv", "-q", "--python", _PYTHON, target], check=True)
    python = target / "bin" / "python"
    subprocess.run([uv, "pip", "install", "-q", "--python", python, "--require-hashes", "-r", lock], check=True)
    ask = f"from importlib import metadata; print(metadata.version({name!r}))"
    return python, subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def vllm_router(work: Path) -> Installed:
    """With its own defaults."""
    python, version = _environment("vllm-router", work, _LOCKS / "vllm-router.lock")

    def start(upstream: str, directory: Path, port: int) -> tuple[list[str], Mapping[str, str]]:
        where = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", upstream]
        metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        return [str(python.with_name("vllm-router")), *where, *metrics], {}

    return Installed("vllm-router", version, start, "/health")


def litellm(work: Path) -> Installed:
    """Its proxy, with one key and without a database."""
    python, version = _environment("litellm", work, _LOCKS / "litellm.lock")

    def start(upstream: str, directory: Path, port: int) -> tuple[list[str], Mapping[str, str]]:
        model = {"model_name": MODEL, "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{upstream}/v1", "api_key": "none"}}
        # JSON is YAML.
        (directory / "config.yaml").write_text(json.dumps({"model_list": [model], "general_settings": {"master_key": KEY}}))
        where = ["--config", str(directory / "config.yaml"), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
        # It would ask the internet for prices.
        return [str(python.with_name("litellm")), *where], {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    return Installed("litellm", version, start, "/health/liveliness")
