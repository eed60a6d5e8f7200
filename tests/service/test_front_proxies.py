"""The gateway behind real nginx and real Envoy, with exactly the limits that the stack renders for them."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.component import test_way_in as stack_with
from tests.service.conftest import KEY
from tests.service.front_proxies import HOST, Front, envoy, envoy_program, nginx
from tests.service.mounted import MountedSecret
from tests.service.neighbours import Fleet, Request, Server, word
from tests.service.processes import Service
from tests.service.test_neighbours import until

SILENT_S = 17
"""Longer than a stream of ours is silent (14 s), and than Envoy waits by itself (15 s)."""
TOLD = ("API_SERVER_MAX_BODY_BYTES", "API_SERVER_REQUEST_TIMEOUT_S", "API_SERVER_TLS_NAMES")
"""What the rendering tells the process."""
BODY_BYTES = 32 * 2**20
EVENT = b'data: {"choices": [{"delta": {"content": "tick"}}]}\n\n'


async def behaves(request: Request) -> None:
    """As the last message says: `silent`, `for ever`, or else it is the answer."""
    said = word(request)[:64]
    streams = request.body.get("stream") is True
    if said == "silent":
        if streams:
            await request.head("200 OK", "text/event-stream")
            await request.say(EVENT)
        await asyncio.sleep(SILENT_S)
        if not streams:
            await request.answer()
            return
        await request.say(EVENT + b"data: [DONE]\n\n")
    elif said == "for ever":
        await request.head("200 OK", "text/event-stream")
        while True:
            await request.say(EVENT)
            await asyncio.sleep(0.05)
    else:
        await request.answer(json.dumps({"choices": [{"message": {"content": said}}]}).encode())


@dataclass(frozen=True)
class Behind:
    """A front, a gateway, and its one server."""

    front: Front
    gateway: Service
    server: Server
    silence: "Future[tuple[int, float, str]]"
    """An answer's status after a long silence, when the first part of a stream came, and that stream. It begins before the tests do."""

    def ask(self, text: str, **fields: object) -> httpx.Response:
        with self.front.client() as client:
            return client.post("/v1/chat/completions", json=chat(text, **fields))


def chat(text: str, **fields: object) -> dict[str, Any]:
    return {"model": "a", "messages": [{"role": "user", "content": text}], **fields}


@pytest.fixture(scope="module", params=["nginx", "envoy"])
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """With TLS before the proxy and behind it."""
    kind, work = request.param, tmp_path_factory.mktemp("front")
    secret = MountedSecret(work / "tls")
    way: dict[str, Any] = {"host": HOST, "wayIn": stack_with.INGRESS if kind == "nginx" else stack_with.ROUTE}
    # Its certificate is for HOST alone, as one by a public authority.
    rendered = stack_with.objects(**way, tls={"secret": "a", "ca": secret.pair["authority"]})
    told = {name: value for name, value in stack_with.environment(rendered).items() if name in TOLD}
    settings = {name.removeprefix("API_SERVER_"): value for name, value in told.items()} | {"MEMORY_BYTES": str(2**31)}
    settings |= {"TLS_DIR": str(secret.directory)}
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(work).running())
        [server] = fleet.add(behaves)
        gateway = stack.enter_context(fleet.gateway(route={"max_in_flight": 64}, **dict[str, Any](settings)))
        if kind == "nginx":
            annotations = rendered["Ingress/api-server"]["metadata"]["annotations"]
            front = stack.enter_context(nginx(work, secret, gateway, annotations))
        else:
            policy = rendered["BackendTLSPolicy/api-server"]["spec"]
            program = envoy_program(tmp_path_factory.mktemp("envoy"))
            front = stack.enter_context(envoy(program, work, secret, gateway, rendered["HTTPRoute/api-server"]["spec"], policy))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        yield Behind(front, gateway, server, pool.submit(silence, front))


def silence(front: Front) -> tuple[int, float, str]:
    with ThreadPoolExecutor(1) as pool, front.client() as one, front.client() as other:
        whole = pool.submit(one.post, "/v1/chat/completions", json=chat("silent"))
        started = time.monotonic()
        with other.stream("POST", "/v1/chat/completions", json=chat("silent", stream=True)) as answer:
            assert answer.status_code == 200
            parts = answer.iter_text()
            first = next(parts)
            first_s = time.monotonic() - started
            text = first + "".join(parts)
        return whole.result().status_code, first_s, text


def of_bytes(size: int) -> bytes:
    """A request of exactly so many bytes."""
    empty = len(json.dumps(chat("")))
    return json.dumps(chat("a" * (size - empty))).encode()


def test_the_largest_body_passes_and_one_byte_more_is_refused_by_the_gateway(behind: Behind) -> None:
    with behind.front.client() as client:
        taken = client.post("/v1/chat/completions", content=of_bytes(BODY_BYTES))
        assert (taken.status_code, taken.json()["choices"][0]["message"]["content"]) == (200, "a" * 64)
        refused = client.post("/v1/chat/completions", content=of_bytes(BODY_BYTES + 1))
    assert refused.status_code == 413
    assert refused.json()["error"]["type"] == "invalid_request_error", "in the shape that clients know"


def test_who_has_no_key_is_refused_before_the_body(behind: Behind) -> None:
    with behind.front.client() as client:
        refused = client.post("/v1/chat/completions", content=b"[" * 2**20, headers={"Authorization": "Bearer wrong"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


TE, CL = b"Transfer-Encoding: chunked", b"Content-Length: %d"


def inner(word: str) -> bytes:
    """The request that is smuggled, with that word in its first line and as its message."""
    body = json.dumps(chat(word)).encode()
    head = f"POST /v1/chat/completions?{word} HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def smuggles(smuggled: bytes) -> dict[str, tuple[tuple[bytes, ...], bytes]]:
    """Lines of the outer request's head, and what follows it."""
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
    return {
        "CL.TE": ((CL % (5 + len(smuggled)), TE), b"0\r\n\r\n" + smuggled),
        "TE.CL": ((TE, CL % 4), chunked),
        "CL.TE, in the other order": ((TE, CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "a space before the colon": ((b"Transfer-Encoding : chunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "a tab": ((b"Transfer-Encoding:\tchunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "a vertical tab": ((b"Transfer-Encoding: \x0bchunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "another coding": ((b"Transfer-Encoding: xchunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "two codings": ((TE, b"Transfer-Encoding: identity", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "a list of codings": ((b"Transfer-Encoding: identity, chunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "obs-fold of the coding": ((b"Transfer-Encoding:\r\n chunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "obs-fold that hides the coding": ((b"X: a\r\n Transfer-Encoding: chunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "a bare line feed that hides it": ((b"X: a\nTransfer-Encoding: chunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "a bare carriage return": ((b"X: a\rTransfer-Encoding: chunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "an underscore": ((b"Transfer_Encoding: chunked", CL % (5 + len(smuggled))), b"0\r\n\r\n" + smuggled),
        "two lengths": ((CL % 0, CL % len(smuggled)), smuggled),
        "two lengths, in the other order": ((CL % len(smuggled), CL % 0), smuggled),
        "a list of lengths": ((b"Content-Length: 0, %d" % len(smuggled),), smuggled),
        "a length with a sign": ((b"Content-Length: +0", CL % len(smuggled)), smuggled),
        "a length in octal": ((b"Content-Length: 0x0", CL % len(smuggled)), smuggled),
        "a length that may be dropped": ((CL % len(smuggled), b"Connection: Content-Length"), smuggled),
        "a coding that may be dropped": ((TE, b"Connection: Transfer-Encoding"), chunked),
        "a chunk extension with a line feed": ((TE,), b"2;\nxx\r\n%x\r\n0\r\n\r\n%b\r\n0\r\n\r\n" % (5 + len(smuggled), smuggled)),
        "chunk sizes that end with a line feed": ((TE,), b"0\n\n" + smuggled),
        "a chunk that is longer than it says": ((TE,), b"2\r\nxx" + b"0\r\n\r\n" + smuggled),
        "a chunk size with a sign": ((TE,), b"+0\r\n\r\n" + smuggled),
        "a chunk size with a prefix": ((TE,), b"0x0\r\n\r\n" + smuggled),
        "a chunk size that runs over": ((TE,), b"1%b\r\n\r\n" % (b"0" * 16) + smuggled),
        "a trailer that is a length": ((TE,), b"0\r\n" + CL % len(smuggled) + b"\r\n\r\n" + smuggled),
        "Expect that nobody knows": ((CL % len(smuggled), b"Expect: y 100-continue"), smuggled),
        "Expect": ((CL % len(smuggled), b"Expect: 100-continue"), smuggled),
        "an upgrade": ((CL % len(smuggled), b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"), smuggled),
        "an upgrade to HTTP/2": (
            (CL % len(smuggled), b"Connection: upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAA"),
            smuggled,
        ),
    }  # fmt: skip


def sent(front: Front, raw: bytes) -> bytes:
    """What is answered to these bytes within a while."""
    parts, answer = urlsplit(front.url), b""
    plain = socket.create_connection((parts.hostname, parts.port or 0), timeout=20)
    with front.trusts.wrap_socket(plain, server_hostname=HOST) as connection, suppress(OSError):
        connection.sendall(raw)
        connection.settimeout(0.4)
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


@pytest.mark.parametrize(("method", "version"), [(b"POST", b"HTTP/1.1"), (b"GET", b"HTTP/1.1"), (b"POST", b"HTTP/1.0")])
def test_nothing_reaches_the_gateway_that_the_proxy_did_not_understand(behind: Behind, method: bytes, version: bytes) -> None:
    """Both must agree where a request ends: what one takes for a body, and the other for a request, would be asked in another's name."""

    def tried(number: int, name: str) -> str:
        """The word of its smuggled request."""
        smuggled = f"smuggled-{number:02}-{method.decode()}-{version[-3:].decode()}"
        lines, rest = smuggles(inner(smuggled))[name]
        head = [method + b" /v1/chat/completions " + version, b"Host: " + HOST.encode(), b"x-api-key: " + KEY.encode(), *lines, b"", b""]
        sent(behind.front, b"\r\n".join(head) + rest)
        # What would be left on a connection that the proxy keeps comes before the next request on it.
        for turn in range(2):
            said = behind.ask(f"after {name} {turn}"[:60])
            assert (said.status_code, said.json()["choices"][0]["message"]["content"]) == (200, f"after {name} {turn}"[:60])
        return smuggled

    names = list(smuggles(b""))
    # Each of them waits for an answer that may not come.
    with ThreadPoolExecutor(8) as pool:
        words = dict(zip(names, pool.map(tried, range(len(names)), names), strict=True))
    for name, smuggled in words.items():
        reached = [word(each) for each in behind.server.seen if each.body is not None].count(smuggled)
        assert reached <= 1, name
        if reached:
            # Both took it for the client's next request.
            until(lambda smuggled=smuggled: behind.front.understood(f"?{smuggled}") == 1, timeout_s=10)


def test_a_long_silence_ends_neither_a_stream_nor_an_answer(behind: Behind) -> None:
    """It lasts while the tests before this one run."""
    status, first_s, text = behind.silence.result()
    assert status == 200
    assert first_s < SILENT_S / 2, "what is there is not held back"
    assert text.count("tick") == 2
    assert text.endswith("data: [DONE]\n\n")
    assert "\n:" in text, "a sign of life"


def test_a_client_that_leaves_frees_the_server(behind: Behind) -> None:
    behind.silence.result()
    with behind.front.client() as client, client.stream("POST", "/v1/chat/completions", json=chat("for ever", stream=True)) as answer:
        assert "tick" in next(answer.iter_text())
        assert behind.server.at_once == 1
    until(lambda: behind.server.at_once == 0, timeout_s=10)
    assert in_flight(behind.gateway) == 0


def in_flight(gateway: Service) -> float:
    text = httpx.get(f"{gateway.metrics_url}/metrics", timeout=10).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("api_server_in_flight_requests{"))


def test_what_is_smuggled_would_be_answered(behind: Behind) -> None:
    """Or the test before could not fail."""
    assert b"alone" in sent(behind.front, inner("alone"))
    until(lambda: behind.front.understood("?alone") == 1)


def test_names_with_underscores_pass_nginx_when_it_is_told(tmp_path: Path) -> None:
    """Codex's `session_id`. No annotation of an Ingress can say it, so docs/tls.md does."""
    secret = MountedSecret(tmp_path / "tls")
    annotations = stack_with.objects(host=HOST, wayIn=stack_with.INGRESS)["Ingress/api-server"]["metadata"]["annotations"]
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(tmp_path).running())
        [server] = fleet.add(behaves)
        gateway = stack.enter_context(fleet.gateway())
        for extra, passes in (("", False), ("underscores_in_headers on;", True)):
            front = stack.enter_context(nginx(tmp_path, secret, gateway, annotations, extra))
            with front.client() as client:
                client.post("/v1/chat/completions", json=chat("a"), headers={"session_id": "s"})
            assert ("session_id" in server.seen[-1].headers) is passes
