"""A thousand hostile inputs on sockets of the gateway and the model server. tests/proofs/test_hostile_input.py sends ten thousand."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.service.conftest import KEY, ModelServerFactory, as_user
from tests.service.hostile import INPUTS, Level, check, exchange, settled
from tests.service.neighbours import HEADERS, Asking, Fleet, Request, answers, ask
from tests.service.processes import Service
from tests.service.test_neighbours import until

EVERY_CHECK: Any = tuple(HealthCheck)
"""An enum by metaclass, which type checkers do not see."""
MIB = 2**20


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    work = tmp_path_factory.mktemp("hostile")
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(work).running())
        fleet.add(is_both, is_both)
        cached: Any = as_user(valkey, "api-server", work)
        yield stack.enter_context(
            fleet.gateway(
                others={"b": {"url": f"http://127.0.0.3:{fleet.port}", "engine": "ollama", "context_length": 2048}},
                **cached,
            )
        )


async def is_both(request: Request) -> None:
    """A server of OpenAI's API, and an Ollama with one model."""
    native = {"model": "b", "message": {"role": "assistant", "content": "a"}, "response": "a", "done": True, "prompt_eval_count": 9}
    if request.path in ("/api/tags", "/api/ps"):
        await request.answer(json.dumps({"models": [{"name": "b:latest", "digest": "0"}]}).encode())
    elif request.path == "/api/version":
        await request.answer(b'{"version": "0"}')
    elif request.path.startswith("/api/"):
        streams = request.body.get("stream") is not False and request.path in ("/api/chat", "/api/generate")
        await request.head("200 OK", "application/x-ndjson" if streams else "application/json")
        await request.say(json.dumps(native).encode() + b"\n")
    else:
        await request.answer()


def plain(method: str, path: str, body: bytes = b"", key: str = KEY) -> bytes:
    """A request as it should be, or nearly."""
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def hammer(service: Service, inputs: int, has_metrics_port: bool = True) -> Counter[int]:
    """Send so many inputs, and see that the process is as it was. How often each status came."""
    found: Counter[int] = Counter()

    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=EVERY_CHECK)
    @given(raw=INPUTS)
    @example(raw=plain("GET", "/v1/models"))
    @example(raw=plain("POST", "/v1/chat/completions", b"{"))
    @example(raw=plain("GET", "/v1/models", key="nobody"))
    @example(raw=plain("POST", "/v1/none"))
    def one(raw: bytes) -> None:
        found.update(check(exchange(service, raw), raw) or [0])

    exchange(service, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    before = Level.of(service, has_metrics_port)
    one()
    after = settled(service, before, has_metrics_port)
    assert after.memory < before.memory + 48 * MIB, (before, after)
    log = service.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    assert " ERROR " not in log, [line for line in log.splitlines() if " ERROR " in line][:5]
    return found


def test_a_gateway_answers_every_input_in_a_shape_and_keeps_nothing_of_it(gateway: Service) -> None:
    found = hammer(gateway, 700)
    assert {200, 400, 401, 404} <= set(found), "inputs of all kinds came"
    assert httpx.get(f"{gateway.url}/v1/models", headers=HEADERS, timeout=10).status_code == 200


def test_a_model_server_too(model_server: ModelServerFactory) -> None:
    service = model_server("tiny:1", MODEL_ID="a", PARALLEL="4")
    found = hammer(service, 300, has_metrics_port=False)
    assert {200, 400, 404} <= set(found)
    assert service.process.poll() is None


def connected(service: Service) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def conforms(service: Service, work: Path, examples: int) -> int:
    """Have schemathesis ask whatever the OpenAPI document allows, and much that it does not. How many requests that were."""
    program = [
        Path(sys.executable).parent / "schemathesis",
        "run",
        f"{service.url}/openapi.json",
        "--no-color",
        "--generation-database",
        "none",
    ]
    keys = ["-H", f"Authorization: Bearer {KEY}", "-H", f"x-api-key: {KEY}"]
    phases = ["--phases", "coverage,fuzzing", "--max-examples", str(examples), "--checks", ",".join(CHECKS)]
    done = subprocess.run([*program, *keys, *phases], cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return int(re.findall(r"(\d+) generated", done.stdout)[0])


def test_answers_are_those_of_the_document(gateway: Service, model_server: ModelServerFactory, tmp_path: Path) -> None:
    assert conforms(gateway, tmp_path, 2) >= 500
    assert conforms(model_server("tiny:1"), tmp_path, 2) >= 20


class TestLimits:
    @pytest.fixture
    def fleet(self, tmp_path: Path) -> Iterator[Fleet]:
        with Fleet(tmp_path).running() as fleet:
            yield fleet

    def test_a_head_has_a_length(self, gateway: Service) -> None:
        with closing(connected(gateway)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n")
            sent = 0
            with pytest.raises(ConnectionError):
                while sent < MIB:
                    connection.sendall(b"X-%d: " % sent + b"x" * 1000 + b"\r\n")
                    sent += 1000
                    time.sleep(0.001)
        assert sent < MIB

    def test_a_head_and_a_body_have_a_time(self, fleet: Fleet) -> None:
        fleet.add(answers)
        with fleet.gateway(HEAD_S="1", BODY_S="1") as api:
            for start in (b"", b"GET / HT", b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"):
                with closing(connected(api)) as connection:
                    connection.sendall(start)
                    said = connection.recv(4096)
                    assert said.startswith(b"HTTP/1.1 408 "), start
                    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
            with closing(connected(api)) as connection:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nx-api-key: {KEY}\r\nContent-Length: 100\r\n\r\n{{"
                connection.sendall(head.encode())
                assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
            assert ask(api).status_code == 200

    def test_idle_connections_make_room_and_working_ones_do_not(self, fleet: Fleet) -> None:
        async def waits(request: Request) -> None:
            await asyncio.sleep(3)
            await request.answer()

        fleet.add(waits)
        with fleet.gateway(route={"max_in_flight": 20}, MAX_CONNECTIONS="8") as api, ExitStack() as stack:
            idle = [stack.enter_context(closing(connected(api))) for _ in range(30)]
            assert httpx.get(f"{api.url}/ready", timeout=10).status_code == 200
            assert idle[0].recv(10) == b"", "the one that idled longest is gone"
            asking = Asking(api)
            for number in range(5):
                asking.one(f"{number}")
            statuses = Counter(response.status_code for response in asking.all().values())
            assert statuses == {200: 4, 429: 1}, "one key has half of the connections"
            until(lambda: ask(api).status_code == 200)

    def test_a_new_connection_is_refused_when_all_work(self, fleet: Fleet) -> None:
        async def waits(request: Request) -> None:
            await asyncio.sleep(4)
            await request.answer()

        fleet.add(waits)
        with fleet.gateway(route={"max_in_flight": 20}, MAX_CONNECTIONS="1") as api:
            asking = Asking(api)
            asking.one("a")
            time.sleep(1)
            with closing(connected(api)) as connection:
                said = connection.recv(4096)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 2" in said
            assert asking.all()["a"].status_code == 200
