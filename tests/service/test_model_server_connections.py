"""Connections, heads and bodies that never end, at a model server: bounded, and the others are served."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from tests.service.conftest import ModelServerFactory
from tests.service.processes import Service

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
LIMIT_S = 1.0


def connected(service: Service) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def said(connection: socket.socket) -> tuple[int, str]:
    """Status and error code of an answer."""
    answer = b""
    while not answer.endswith(b"}}"):
        chunk = connection.recv(65536)
        assert chunk, answer
        answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.fixture
def service(model_server: ModelServerFactory) -> Service:
    return model_server("tiny:1", HEAD_S=str(LIMIT_S), BODY_S=str(LIMIT_S), MAX_CONNECTIONS="8")


@pytest.mark.parametrize(
    "start",
    [b"", b"GET /health HT", HEALTH.replace(b"\r\n\r\n", b"\r\nx: "), CHAT + b"Content-Length: 100\r\n\r\n{", CHAT],
    ids=["nothing", "a part of a line", "a part of a header", "a part of a body", "a head without an end"],
)
def test_what_does_not_end_is_refused_in_time(service: Service, start: bytes) -> None:
    began = time.monotonic()
    with closing(connected(service)) as connection:
        connection.sendall(start)
        assert said(connection) == (408, "request_timeout")
    assert LIMIT_S * 0.9 <= time.monotonic() - began < LIMIT_S + 5


def test_a_later_head_has_the_same_limit(service: Service) -> None:
    with closing(connected(service)) as connection:
        connection.sendall(HEALTH)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(HEALTH[:20])
        assert said(connection) == (408, "request_timeout")


def test_a_head_without_an_end_takes_no_memory(service: Service) -> None:
    with closing(connected(service)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"x-padding: 0123456789\r\n" * 6000)
        assert said(connection)[0] == 400


def test_the_connection_that_idles_longest_makes_room(service: Service) -> None:
    with closing(connected(service)) as first, closing(connected(service)) as second:
        for connection in (second, first):
            connection.sendall(HEALTH)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        others = [connected(service) for _ in range(7)]
        for connection in others:
            connection.sendall(HEALTH)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert second.recv(1) == b""
        first.sendall(HEALTH)
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
        for connection in others:
            connection.close()


def test_where_all_work_one_more_is_refused_and_the_next_is_served(model_server: ModelServerFactory) -> None:
    service = model_server("slow:1", MAX_CONNECTIONS="8", PARALLEL="8", CONTEXT_LENGTH="4096")
    message = {"role": "user", "content": "Go."}
    body = json.dumps({"model": "slow:1", "messages": [message], "max_tokens": 4000, "stream": True}).encode()
    working = [connected(service) for _ in range(8)]
    for connection in working:
        connection.sendall(CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    for connection in working:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    with closing(connected(service)) as refused:
        assert said(refused) == (503, "server_busy")
    for connection in working:
        connection.close()
    deadline = time.monotonic() + 10
    while httpx.get(f"{service.url}/ready", timeout=10).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("values", "status"),
    [(b"{},", 413), (b'"",', 413), (b'"{,:[",', 413), (b"[" * 1000 + b"]" * 1000 + b",", 413), (b'"' + b"," * 2**20 + b'",', 200)],
    ids=["objects", "empty texts", "texts of marks", "depth", "marks within long texts"],
)
def test_many_values_hold_up_nobody(model_server: ModelServerFactory, values: bytes, status: int) -> None:
    """32 MiB of them, while others ask for the health of the server."""
    service = model_server("tiny:1", BODY_S="60")
    filler = values * ((31 * 2**20) // len(values))
    body = b'{"model": "tiny:1", "max_tokens": 1, "messages": [{"role": "user", "content": "Go."}], "user": [' + filler + b"0]}"
    waits: list[float] = []
    ended = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client:
            while not ended.is_set():
                began = time.monotonic()
                assert client.get("/health").status_code == 200
                waits.append(time.monotonic() - began)
                time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        looks = pool.submit(look)
        answer = httpx.post(f"{service.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=120)
        ended.set()
        looks.result(30)
    assert answer.status_code == status, answer.text[:300]
    # Parsed at once, on the loop, they took seconds.
    assert sorted(waits)[-2] < 0.5, waits
