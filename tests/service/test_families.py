"""IPv4, IPv6 and both: what each process listens on by default, and who reaches whom where there is no IPv4."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import redis
import yaml

from components.cache import cache_conf, users_conf
from components.contract import AGENT_CONTROL_PORT, AGENT_PORT, API_METRICS_PORT, PORTS
from images import embedded
from infra.preparation.certificates import verifier_tls
from model_sync import catalog, gguf
from model_sync import store as stores
from tests import tiny_gguf
from tests.service import origins, registries
from tests.service.conftest import KEY, PASSWORD, start_api_server, start_model_server
from tests.service.families import WITHOUT_IPV6, own_network
from tests.service.processes import ROOT
from tests.service.test_model_sync import model, publish

V4, V6 = "127.0.0.1", "[::1]"
GOLDEN = ROOT / "tests" / "golden" / "dev"


@dataclass(frozen=True)
class Program:
    """One that the fleet runs, as its image starts it: with no word on where to listen."""

    argv: list[str]
    env: dict[str, str]
    questions: tuple[str, ...]
    """`scheme://{host}:port/path`, each answered with 200."""
    files: dict[str, str] = field(default_factory=dict)
    """Of its directory, which is `{work}` in the values above."""


def python(module: str, env: dict[str, str], *questions: str, **files: str) -> Program:
    return Program([sys.executable, "-m", module], env, questions, files)


def http(port: int, path: str) -> str:
    return f"http://{{host}}:{port}{path}"


def verifier() -> Program:
    pair = json.loads(verifier_tls("modelfleet"))
    files = {"CERTIFICATE": pair["certificate"], "KEY": pair["privateKey"], "PUBLIC_KEYS": pair["certificate"]}
    public = subprocess.run(["openssl", "x509", "-pubkey", "-noout"], input=pair["certificate"], capture_output=True, text=True, check=True)
    files["PUBLIC_KEYS"] = public.stdout
    env = {f"VERIFIER_{name}_FILE": f"{{work}}/{name}" for name in files}
    return python("image_verifier", env, f"https://{{host}}:{PORTS['image-verifier']}/health", **files)


ROUTES = json.dumps({"a": {"url": "http://127.0.0.1:1"}})
ACTIVATOR = {
    "ACTIVATOR_GATEWAYS": "localhost:1",
    "ACTIVATOR_STATEFUL_SETS_URL": "http://127.0.0.1:1/statefulsets",
    "ACTIVATOR_SCALES": json.dumps({"ollama": {"most": 3, "idle_s": 60}}),
    "ACTIVATOR_TOKEN_FILE": "{work}/token",
}
PROGRAMS: dict[str, Callable[[], Program]] = {
    "api-server": lambda: python(
        "api_server",
        {"API_SERVER_KEYS_FILE": "{work}/keys", "API_SERVER_ROUTES": ROUTES},
        http(PORTS["api-server"], "/health"),
        http(API_METRICS_PORT, "/metrics"),
        keys=KEY,
    ),
    "activator": lambda: python(
        "api_server.activator",
        ACTIVATOR,
        http(PORTS["activator"], "/health"),
        token="t",
    ),
    "model-server": lambda: python("model_server", {"MODEL_SERVER_MODEL": "tiny:1"}, http(PORTS["model-server"], "/health")),
    "metrics-exporter": lambda: python("metrics_exporter", {"EXPORTER_NVML": "0"}, http(PORTS["metrics-exporter"], "/health")),
    "ollama-agent": lambda: python(
        "ollama_agent",
        {"OLLAMA_AGENT_CATALOG": "{work}/catalog.json"},
        http(AGENT_PORT, "/metrics"),
        http(AGENT_CONTROL_PORT, "/health"),
    ),
    "image-verifier": verifier,
}


def answers(question: str, host: str) -> bool:
    try:
        # The certificate is of a Service's name.
        return httpx.get(question.format(host=host), timeout=5, trust_env=False, verify=False).status_code == 200  # noqa: S501
    except httpx.HTTPError:
        return False


class Started:
    """A program in the network of this thread."""

    def __init__(self, stack: ExitStack, work: Path, program: Program, *before: str) -> None:
        for name, content in program.files.items():
            (work / name).write_text(content)
        env = {"PATH": os.environ["PATH"], "HOME": str(work), **program.env}
        env = {name: value.replace("{work}", str(work)) for name, value in env.items()}
        self.log, self.questions = work / "log", program.questions
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*before, *program.argv], cwd=ROOT, env=env, stdout=log, stderr=log)
        stack.callback(self._end)

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def until_it_answers_at(self, host: str) -> None:
        deadline = time.monotonic() + 60
        while not all(answers(question, host) for question in self.questions):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{host}: {self.log.read_text()}"
            time.sleep(0.05)


@pytest.fixture
def alone() -> Iterator[ExitStack]:
    with own_network(), ExitStack() as stack:
        yield stack


@pytest.fixture(params=[*PROGRAMS, "ollama"])
def program(request: pytest.FixtureRequest, store: Path) -> Program:
    if request.param == "ollama":
        containers = yaml.safe_load((GOLDEN / "statefulset-ollama.yaml").read_text())["spec"]["template"]["spec"]["containers"]
        (host,) = (each["value"] for each in containers[0]["env"] if each["name"] == "OLLAMA_HOST")
        server = request.getfixturevalue("ollama_program")
        return Program(
            [str(server), "serve"], {"OLLAMA_HOST": host, "OLLAMA_MODELS": "{work}/models"}, (http(PORTS["ollama"], "/api/tags"),)
        )
    made = PROGRAMS[request.param]()
    made.env.update({"MODEL_SERVER_MODELS_DIR": str(store)} if request.param == "model-server" else {})
    return made


def test_every_service_answers_at_addresses_of_both_families(alone: ExitStack, program: Program, tmp_path: Path) -> None:
    started = Started(alone, tmp_path, program)
    started.until_it_answers_at(V4)
    started.until_it_answers_at(V6)


def test_every_service_starts_where_the_kernel_has_no_ipv6(alone: ExitStack, program: Program, tmp_path: Path) -> None:
    started = Started(alone, tmp_path, program, *WITHOUT_IPV6)
    started.until_it_answers_at(V4)
    assert not any(answers(question, V6) for question in started.questions)


def cache(stack: ExitStack, work: Path, *before: str) -> Started:
    conf = work / "cache.conf"
    conf.write_text(cache_conf(2**26, "allkeys-lru").replace("/etc/cache-auth", str(work)).replace("/etc/cache-users", str(work)))
    (work / "auth.conf").write_text(f"requirepass {PASSWORD}\n")
    (work / "users.conf").write_text(users_conf(PASSWORD))
    return Started(stack, work, Program([str(embedded.valkey()), str(conf)], {}, ()), *before)


def keys_at(host: str, started: Started) -> int:
    """How many the cache has, asked at this address as soon as it answers there."""
    with closing(redis.Redis(host, PORTS["cache-server"], password=PASSWORD)) as client:
        deadline = time.monotonic() + 10
        while True:
            try:
                return int(str(client.dbsize()))
            except redis.ConnectionError:
                assert started.process.poll() is None, started.log.read_text()
                assert time.monotonic() < deadline, started.log.read_text()
                time.sleep(0.05)


@pytest.mark.parametrize(("before", "hosts"), [((), ("127.0.0.1", "::1")), (WITHOUT_IPV6, ("127.0.0.1",))], ids=["both", "ipv4"])
def test_the_cache_listens_on_both_families(alone: ExitStack, tmp_path: Path, before: tuple[str, ...], hosts: tuple[str, ...]) -> None:
    started = cache(alone, tmp_path, *before)
    assert [keys_at(host, started) for host in hosts] == [0] * len(hosts)


def test_a_request_goes_through_a_fleet_that_has_ipv6_alone(alone: ExitStack, store: Path, tmp_path: Path) -> None:
    """Gateway, model server and cache; the first two listen on ::1 and on nothing else."""
    started = cache(alone, tmp_path)
    secret, port = tmp_path / "password", PORTS["model-server"]
    secret.write_text(PASSWORD)
    url = f"redis://{V6}:{PORTS['cache-server']}/0"
    where = {"HOST": "::1", "PORT": str(port), "CACHE_URL": url, "CACHE_PASSWORD_FILE": str(secret)}
    start_model_server(alone, store, tmp_path, "tiny:1", "", None, **where)
    route: dict[str, object] = {"url": f"http://{V6}:{port}", "model": "tiny:1"}
    api = start_api_server(alone, tmp_path, {"a": route}, ready="", HOST="::1")
    api.url = api.url.replace(V4, V6)
    api.wait_for("/ready")
    body = {"model": "a", "messages": [{"role": "user", "content": "?"}], "temperature": 0, "max_tokens": 16}
    headers = {"Authorization": f"Bearer {KEY}", "X-Cache": "exact"}
    deadline = time.monotonic() + 60
    # On a busy machine the cache may be late, and is passed by for some seconds then.
    while (answer := httpx.post(f"{api.url}/v1/chat/completions", json=body, headers=headers, timeout=60)).headers.get("x-cache") != "hit":
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    assert answer.json()["choices"][0]["message"]["content"].startswith("Hello")
    assert keys_at("::1", started) == 1


class _Scale(BaseHTTPRequestHandler):
    """An API server with requests that wait, and a fleet at zero."""

    wanted: list[int]

    def do_GET(self) -> None:
        demand = {"waiting": 9, "in_flight": 0, "idle_s": 0, "short": 9, "places": 4}
        self._answer({"spec": {"replicas": 0}} if self.path == "/statefulsets/ollama/scale" else demand)

    def do_PATCH(self) -> None:
        self.wanted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["spec"]["replicas"])
        self._answer({"spec": {"replicas": self.wanted[-1]}})

    def _answer(self, document: object) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_the_activator_asks_gateways_that_have_ipv6_alone(alone: ExitStack, tmp_path: Path) -> None:
    wanted: list[int] = []
    handler = type("Handler", (_Scale,), {"wanted": wanted})
    listener = type("Server", (ThreadingHTTPServer,), {"address_family": socket.AF_INET6})(("::1", 0), handler)
    alone.callback(listener.server_close)
    threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
    alone.callback(listener.shutdown)
    program = PROGRAMS["activator"]()
    there = f"{V6}:{listener.server_port}"
    program.env.update(ACTIVATOR_GATEWAYS=there, ACTIVATOR_STATEFUL_SETS_URL=f"http://{there}/statefulsets")
    started, deadline = Started(alone, tmp_path, program), time.monotonic() + 30
    while not wanted:
        assert started.process.poll() is None, started.log.read_text()
        assert time.monotonic() < deadline, started.log.read_text()
        time.sleep(0.05)
    assert wanted[0] == 3


def test_a_writer_fetches_from_sources_that_have_ipv6_alone(alone: ExitStack, tmp_path: Path) -> None:
    path = tiny_gguf.make(tmp_path / "m.gguf", "Hello from ::1.")
    gguf.add("tiny:1", path, tmp_path / "store")
    manifest = stores.manifest_path("tiny:1")
    address = f"{V6}:5000"
    alone.enter_context(registries.serving(tmp_path / "registry", address))
    origins.push(address, "team/tiny", "1", tmp_path / "store", manifest)
    origin = alone.enter_context(origins.serving(path.read_bytes(), "::1"))
    pulled = model(f"registry+http://{address}/team/tiny:1", (tmp_path / "store" / manifest).read_bytes(), name="pulled:1", size=2**21)
    shared = tmp_path / "shared"
    assert publish(shared, model(origin.url, path.read_bytes()), pulled) == (0, "")
    assert [entry.name for entry in (catalog.read(shared) or catalog.Catalog()).models] == ["tiny:1", "pulled:1"]
