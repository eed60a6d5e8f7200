"""The activator, a gateway and real Ollama servers: they come when conversations need memory, and go when they hold none."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_sync import gguf
from tests import tiny_gguf
from tests.service import names
from tests.service import ollama as ollama_process
from tests.service.conftest import KEY, SCRIPT, start_api_server
from tests.service.hasty_gateway import PAUSE_S
from tests.service.processes import Service, free_port, running
from tests.service.test_gateway import demand, metric

MODEL, CONTEXT = "wide:1", 32_768
SYSTEM = "A rule of the house. " * 500
"""About 10,000 bytes, which are as many tokens of the model."""
LEASE_S = 4


class Cluster:
    """An API server with the scale of one StatefulSet, whose pods are processes. As Kubernetes does it, the name forgets a pod that goes
    before the pod stops."""

    def __init__(self, program: Path, store: Path, work: Path) -> None:
        self.name, self.port = names.Name(work), free_port()
        self.program, self.store, self.work = program, store, work
        self.wanted, self.asked = 0, list[int]()
        self.pods: list[ExitStack] = []
        self._ended = threading.Event()
        self._pods = threading.Thread(target=self._control)
        cluster = self

        class Scale(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer()

            def do_PATCH(self) -> None:
                cluster.wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["spec"]["replicas"]
                cluster.asked.append(cluster.wanted)
                self._answer()

            def _answer(self) -> None:
                content = json.dumps({"spec": {"replicas": cluster.wanted}, "status": {"replicas": len(cluster.pods)}}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Scale)
        self.url = f"http://127.0.0.1:{self._listener.server_port}/statefulsets"

    def _is_there(self, count: int) -> None:
        self.name.is_now(*(f"127.0.0.{number + 2}" for number in range(count)))

    def _control(self) -> None:
        while not self._ended.wait(0.1):
            if len(self.pods) < self.wanted:
                pod, host = ExitStack(), f"127.0.0.{len(self.pods) + 2}"
                address = {"OLLAMA_HOST": f"{host}:{self.port}", "OLLAMA_CONTEXT_LENGTH": str(CONTEXT), "OLLAMA_NUM_PARALLEL": "1"}
                server = pod.enter_context(ollama_process.running(self.program, self.store, self.work, self.port, **address))
                httpx.post(f"{server.url}/api/generate", json={"model": MODEL}, timeout=60).raise_for_status()
                self.pods.append(pod)
                self._is_there(len(self.pods))
            elif len(self.pods) > self.wanted:
                self._is_there(len(self.pods) - 1)
                time.sleep(3)
                self.pods.pop().close()

    def __enter__(self) -> "Cluster":
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()
        self._pods.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pods.join()
        for pod in self.pods:
            pod.close()
        self._listener.shutdown()
        self._listener.server_close()


@pytest.fixture
def cluster(ollama_program: Path, tmp_path: Path) -> Iterator[Cluster]:
    gguf.add(MODEL, tiny_gguf.make(tmp_path / "wide.gguf", SCRIPT, context=CONTEXT), tmp_path / "models")
    with Cluster(ollama_program, tmp_path / "models", tmp_path) as made:
        yield made


@pytest.fixture
def gateway(cluster: Cluster, tmp_path: Path) -> Iterator[Service]:
    """With an activator behind it. Each server has memory for one conversation."""
    port = free_port()
    routes: dict[str, dict[str, object]] = {
        MODEL: {
            "url": f"http://{names.FLEET}:{cluster.port}",
            "engine": "ollama",
            "context_length": CONTEXT,
            "slots": 1,
            "cached_tokens": 10,
        }
    }
    (tmp_path / "token").write_text("t")
    with ExitStack() as stack:
        settings = {"METRICS_PORT": str(port), "QUEUE_S": "60", "HOLD_S": "60"}
        hasty = (0, "", "tests.service.hasty_gateway")
        api = start_api_server(stack, tmp_path, routes, "/ready", cluster.name.environment, *hasty, **settings)
        env = {
            "GATEWAYS": f"127.0.0.1:{port}",
            "STATEFUL_SETS_URL": cluster.url,
            "TOKEN_FILE": str(tmp_path / "token"),
            "SCALES": json.dumps({names.FLEET: {"most": 2, "idle_s": LEASE_S}}),
            "FLEET": names.FLEET,
            "HOST": "127.0.0.1",
            "PORT": (listens := str(free_port())),
        }
        variables = {f"ACTIVATOR_{name}": value for name, value in env.items()} | cluster.name.environment
        stack.enter_context(running("api_server.activator", int(listens), variables, tmp_path / "activator.log", "/health"))
        yield api


def turn(api: Service, agent: str, number: int = 0) -> httpx.Response:
    history = [{"role": "assistant", "content": SCRIPT}, {"role": "user", "content": "And again."}] * number
    messages = [{"role": "system", "content": f"{agent} {SYSTEM}"}, {"role": "user", "content": "Say it."}, *history]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": 16, "temperature": 0}
    return httpx.post(f"{api.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=120)


def test_servers_come_for_conversations_and_go_when_they_hold_none(cluster: Cluster, gateway: Service, tmp_path: Path) -> None:
    assert turn(gateway, "one").status_code == 200
    assert cluster.asked == [1]
    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(turn, gateway, "two")
        began = time.monotonic()
        assert turn(gateway, "one", 1).status_code == 200, "the first one goes on meanwhile"
        assert second.result(60).status_code == 200
    assert time.monotonic() - began < PAUSE_S, "it waited for a server, and not for the memory of the first"
    assert cluster.asked == [1, 2]
    assert demand(gateway)["models"][MODEL]["held"][0] == 2
    # As long as a tool may take both keep theirs, and longer: then one of the two servers is more than is needed.
    number, until = 2, time.monotonic() + PAUSE_S + LEASE_S + 10
    while time.monotonic() < until:
        assert turn(gateway, "two", number).status_code == 200
        number += 1
        time.sleep(2)
    log = (tmp_path / "activator.log").read_text()
    assert "replica 1 gets no new conversation" in log
    assert [server for server, _ in sorted(demand(gateway)["servers"].items())] == ["127.0.0.2", "127.0.0.3"][: cluster.wanted]
    assert metric(gateway, "api_server_turns_total", model=MODEL, reason="new") == 2
    # The conversation that goes on kept its server if that is the last one, and the other one went if it is not.
    deadline = time.monotonic() + PAUSE_S + 60
    while cluster.wanted or cluster.pods:
        assert time.monotonic() < deadline, (log, demand(gateway))
        time.sleep(0.5)
    assert cluster.asked == [1, 2, 1, 0], "one at a time"
    assert turn(gateway, "three").status_code == 200
