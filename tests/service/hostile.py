"""Hostile input for an HTTP server, as bytes on a socket, and what must hold of every answer."""

import json
import re
import socket
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from hypothesis import strategies as st

from tests.service.conftest import KEY
from tests.service.processes import Service

POSTS = (
    *(
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/rerank",
    ),
    *("/api/chat", "/api/generate", "/api/embed", "/api/show"),
    # Of the model server alone.
    *("/tokenize", "/detokenize"),
)
GETS = (
    "/",
    "/health",
    "/ready",
    "/v1/models",
    "/v1/models/a",
    "/api/tags",
    "/api/ps",
    "/api/version",
    "/openapi.json",
    "/fleet",
    "/page/app.js",
    "/nothing",
)
_OPENAI, _ANTHROPIC, _OLLAMA = {"message", "type", "code", "param"}, {"message", "type"}, str
_PATIENCE_S = 0.2
_NUMBERS = ["1e999", "-1e999", "NaN", "Infinity", "9" * 400, "1" + "0" * 5000, "-0", "0.1e-999", "1.", "0x1", "01", "true", "null"]
_WORDS = ["model", "messages", "role", "content", "tools", "options", "stream", "max_tokens", "stop", "prompt", "input", "images", "think"]
_WORDS += ["response_format", "reasoning", "stream_options", "tool_calls", "n", "tool_choice", "Keep_Alive", "\u212aeep_alive", ""]
_WORDS += ["system", "instructions", "type", "text", "tool_result", "query", "documents", "tokens", "metadata", "thinking"]
TEXTS = st.sampled_from(["a", "user", "system", "tool", "", "\ud800", "\x00", "{{", "data:image/png;base64,", "\U0001f600"]) | st.text(
    max_size=8
)
LEAVES = TEXTS | st.integers() | st.floats() | st.booleans() | st.none()
VALUES = st.recursive(
    LEAVES, lambda each: st.lists(each, max_size=4) | st.dictionaries(st.sampled_from(_WORDS), each, max_size=4), max_leaves=12
)


def _messages() -> st.SearchStrategy[Any]:
    message = st.fixed_dictionaries({"role": TEXTS | VALUES}, optional=dict.fromkeys(("content", "tool_calls", "name", "images"), VALUES))
    return st.lists(message | VALUES, max_size=3)


BODIES = st.fixed_dictionaries(
    {"model": st.sampled_from(["a", "b", "none"]) | VALUES},
    optional={"messages": _messages() | VALUES, **{name: VALUES for name in _WORDS if name not in ("model", "messages")}},
).map(lambda body: json.dumps(body).encode())
MESSAGES = [{"role": "user", "content": "a"}]
ASKED: dict[str, Any] = {
    "messages": MESSAGES,
    "max_tokens": 9,
    "input": "a",
    "query": "a",
    "documents": ["a"],
    "content": "a",
    "tokens": [1],
}
PLAIN = st.fixed_dictionaries(
    {"model": st.sampled_from(["a", "b"]), **{name: st.just(value) for name, value in ASKED.items()}},
    optional={"stream": st.booleans(), "prompt": st.just("a")},
).map(lambda body: json.dumps(body).encode())
"""What every endpoint answers: completions with a prompt, Responses without one."""
RAW_BODIES = st.one_of(
    PLAIN,
    BODIES,
    # Cut, or with bytes in it that are no UTF-8.
    st.tuples(BODIES, st.integers(0, 200)).map(lambda each: each[0][: each[1]]),
    st.tuples(BODIES, st.binary(max_size=4), st.integers(0, 60)).map(lambda each: each[0][: each[2]] + each[1] + each[0][each[2] :]),
    st.sampled_from(_NUMBERS).map(lambda number: f'{{"model": "a", "messages": [{{"role": "user", "content": "a"}}], "max_tokens": {number}}}'.encode()),
    st.tuples(st.sampled_from([b"[", b'{"a":', b'{"model":"a","messages":[']), st.integers(1, 3000)).map(lambda each: each[0] * each[1]),
    st.binary(max_size=60),
)  # fmt: skip
KEYS = st.sampled_from(
    [b"", b"Authorization: Bearer " + KEY.encode(), b"x-api-key: " + KEY.encode(), b"Authorization: Bearer \xff", b"authorization: Basic a"]
)
ODD_HEADERS = st.sampled_from(
    [
        b"", b"Connection: close", b"Content-Encoding: gzip", b"Content-Encoding: nonsense", b"Expect: 100-continue", b"Expect: a", b"Upgrade: websocket\r\nConnection: upgrade",
        b"X: \x00", b"X: \xff\xfe", b" folded: a", b"no colon", b"X" * 9000 + b": a", b"X: " + b"x" * 70_000, b"Host:", b"Host: a\r\nHost: b",
        b"Accept-Encoding: gzip, br", b"x-request-id: \xe9", b"Range: bytes=0-", b"If-None-Match: *", b"Origin: https://ui.example", b"TE: trailers",
        b"Content-Type: application/x-www-form-urlencoded", b"Content-Type: text/plain; charset=utf-99", b"Cookie: a=\x01",
    ]
)  # fmt: skip
LENGTHS = st.sampled_from(
    ["right", "short", "long", "negative", "huge", "word", "two", "none", "chunked", "smuggled", "bad chunks", "half chunks"]
)
METHODS = st.sampled_from([b"POST"] * 6 + [b"GET", b"PUT", b"OPTIONS", b"HEAD", b"TRACE", b"CONNECT", b"PRI", b"post", b"\xff", b""])
TARGETS = st.sampled_from([*(path.encode() for path in POSTS * 3 + GETS)]) | st.sampled_from(
    [
        b"/%ff",
        b"/v1/models/%2e%2e%2f",
        b"//",
        b"*",
        b"/v1/models/" + b"x" * 9000,
        b"http://a/v1/models",
        b"/\x00",
        b"/a b",
        b"",
        b"/v1/models?\xff",
    ]
)


def _framed(body: bytes, length: str) -> bytes:
    """Header lines that say how long the body is, an empty line, and the body: rightly or wrongly."""
    chunked = b"Transfer-Encoding: chunked"
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    said = {
        "right": b"Content-Length: %d" % len(body),
        "short": b"Content-Length: %d" % (len(body) // 2),
        "long": b"Content-Length: %d" % (len(body) + 10),
        "negative": b"Content-Length: -1",
        "huge": b"Content-Length: 99999999999999999999",
        "word": b"Content-Length: many",
        "two": b"Content-Length: %d\r\nContent-Length: 0" % len(body),
        "none": b"X-None: 1",
        "smuggled": chunked + b"\r\nContent-Length: %d" % len(body),
        "bad chunks": chunked,
        "half chunks": chunked,
    }.get(length, chunked)
    sent = {"chunked": chunks, "smuggled": chunks, "bad chunks": b"zz\r\n" + body, "half chunks": chunks[:-3]}.get(length, body)
    return said + b"\r\n\r\n" + sent


def _joined(parts: tuple[bytes, bytes, bytes, bytes, bytes, str, bytes]) -> bytes:
    method, target, version, key, odd, length, body = parts
    lines = [method + b" " + target + b" " + version, b"Host: a", *(line for line in (key, odd) if line)]
    return b"\r\n".join(lines) + b"\r\n" + _framed(body, length)


VERSIONS = st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"HTP/1.1", b""])
REQUESTS = st.tuples(METHODS, TARGETS, VERSIONS, KEYS, ODD_HEADERS, LENGTHS, RAW_BODIES).map(_joined)
WELL_FRAMED = st.tuples(st.just(b"POST"), st.sampled_from([path.encode() for path in POSTS]), st.just(b"HTTP/1.1"),
                        st.just(b"x-api-key: " + KEY.encode()), st.just(b"Connection: close"), st.just("right"), RAW_BODIES).map(_joined)  # fmt: skip
INPUTS = st.one_of(
    WELL_FRAMED,
    REQUESTS,
    # Several on one connection, half a request, and no request at all.
    st.lists(REQUESTS | WELL_FRAMED, min_size=2, max_size=4).map(b"".join),
    st.tuples(REQUESTS, st.integers(0, 400)).map(lambda each: each[0][: each[1]]),
    st.binary(max_size=200),
)


@dataclass(frozen=True)
class Level:
    """What a process holds on to."""

    sockets: int
    in_flight: float
    reserved: float
    waiting: float
    memory: int

    @classmethod
    def of(cls, service: Service, has_metrics_port: bool = True) -> "Level":
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        memory = int(status.split("VmRSS:")[1].split()[0]) * 1024
        text = httpx.get(f"{service.metrics_url if has_metrics_port else service.url}/metrics", timeout=10).text
        sums: dict[str, float] = dict.fromkeys(("in_flight_requests", "running_requests", "reserved_bytes", "waiting_requests"), 0.0)
        for line in text.splitlines():
            found = re.match(r"(?:api|model)_server_(\w+?)(?:\{.*\})? (\S+)$", line)
            if found and found[1] in sums:
                sums[found[1]] += float(found[2])
        links = [link for link in Path(f"/proc/{service.process.pid}/fd").iterdir() if _is_socket(link)]
        in_flight = sums["in_flight_requests"] + sums["running_requests"]
        return cls(len(links), in_flight, sums["reserved_bytes"], sums["waiting_requests"], memory)


def _is_socket(link: Path) -> bool:
    try:
        return str(link.readlink()).startswith("socket:")
    except OSError:
        return False


def settled(service: Service, before: Level, has_metrics_port: bool = True) -> Level:
    """What the process holds on to when nobody asks anything any more: waits until sockets and requests are as before."""
    deadline = time.monotonic() + 30
    while True:
        now = Level.of(service, has_metrics_port)
        # Connections to servers and of our own look at the metrics come and go.
        if (now.in_flight, now.reserved, now.waiting) == (0, 0, 0) and now.sockets <= before.sockets + 2:
            return now
        assert time.monotonic() < deadline, (before, now)
        time.sleep(0.2)


def exchange(service: Service, raw: bytes) -> bytes:
    """Everything that is answered to these bytes. The client leaves when nothing more comes for a while."""
    host, port = service.url.removeprefix("http://").split(":")
    answer = b""
    with closing(socket.create_connection((host, int(port)), timeout=20)) as connection, suppress(ConnectionError):
        connection.sendall(raw)
        connection.settimeout(_PATIENCE_S)
        with suppress(TimeoutError):
            while chunk := connection.recv(65536):
                answer += chunk
    return answer


def check(answer: bytes, raw: bytes) -> list[int]:
    """The statuses of all answers. Each that is no success has the error shape of one of the three APIs, and none is a fault of ours."""
    statuses: list[int] = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status == 100:
            answer = rest
            continue
        statuses.append(status)
        assert status < 500 or status in (502, 503), (raw[:500], answer[:500])
        length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
        end = int(length[1]) if length else len(rest)
        if length and rest.startswith(b"HTTP/1."):
            end = 0  # The answer to HEAD has the length of a body that does not come.
        body, answer = rest[:end], rest[end:]
        if status < 400 or not body:
            continue  # a stream, or the answer to HEAD
        try:
            document = json.loads(body)
        except ValueError:
            raise AssertionError((raw[:500], head, body[:500])) from None
        if "status" in document:
            continue  # a probe
        error = document["error"]
        assert isinstance(error, _OLLAMA) or set(error) == (_ANTHROPIC if document.get("type") == "error" else _OPENAI), (
            raw[:500],
            body[:500],
        )
    return statuses
