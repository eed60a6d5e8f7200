"""Parts of streams on their way through the gateway, which takes each one in the callback that read it: real processes, made-up servers."""

import asyncio
import hashlib
import random
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

import aiohttp
import httpx
import pytest

from api_server.connector import Connector, ServerConnection, flow
from tests.service.conftest import KEY
from tests.service.neighbours import HEADERS, Behaviour, Fleet, Request, ask
from tests.service.processes import Service

BODY = {"model": "a", "messages": [{"role": "user", "content": "Say it."}], "stream": True}
LAST = b"data: [DONE]\n\n"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path).running() as fleet:
        yield fleet


def events(sizes: Sequence[int]) -> bytes:
    """A stream whose events have texts of these sizes."""
    return b"".join(b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % (b"tick" * size)[:size] for size in sizes) + LAST


def in_chunks(text: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    """As HTTP frames it."""
    at = 0
    while at < len(text):
        part = text[at : (at := at + next(sizes))]
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


def says(*writes: bytes, pause_s: float = 0.0) -> Behaviour:
    async def behaviour(request: Request) -> None:
        await request.head("200 OK", "text/event-stream", "Transfer-Encoding: chunked")
        for each in writes:
            await request.say(each)
            await asyncio.sleep(pause_s)

    return behaviour


def drawn(seed: int) -> Iterator[int]:
    source = random.Random(seed)  # noqa: S311 (no secret)
    while True:
        yield source.choice((1, 2, 7, 60, 197, 4096, 70_000))


def heard(api: Service) -> bytes:
    response = ask(api, stream=True)
    assert response.status_code == 200
    return response.content


def heard_by_an_old_client(api: Service) -> bytes:
    """HTTP/1.0, in which the end of a connection is that of a body."""
    body, url = httpx.Request("POST", api.url, json=BODY).content, httpx.URL(api.url)
    head = [f"POST /v1/chat/completions HTTP/1.0\r\nAuthorization: Bearer {KEY}", "Content-Type: application/json"]
    head += [f"Content-Length: {len(body)}", "", ""]
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall("\r\n".join(head).encode() + body)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    said, _, rest = answer.partition(b"\r\n\r\n")
    assert b" 200 " in said[:20]
    assert b"chunked" not in said.lower()
    return rest


@pytest.mark.parametrize("read", [heard, heard_by_an_old_client])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_comes_whole_however_it_is_cut(fleet: Fleet, seed: int, read: object) -> None:
    assert callable(read)
    of_texts = random.Random(seed).choices((1, 5, 40, 9000, 200_000), (20, 40, 40, 3, 1), k=400)  # noqa: S311
    text = events(of_texts)
    framed, cuts, writes = b"".join(in_chunks(text, drawn(seed))), drawn(seed + 1), list[bytes]()
    while framed:
        size = next(cuts)
        writes.append(framed[:size])
        framed = framed[size:]
    fleet.add(says(*writes))
    with fleet.gateway() as api:
        assert read(api) == text


def test_a_flood_of_chunks_of_a_byte_each_comes_whole(fleet: Fleet) -> None:
    text = events([30_000] * 4)
    fleet.add(says(b"".join(in_chunks(text, repeat(1)))))
    with fleet.gateway() as api:
        assert heard(api) == text


def test_a_client_that_reads_late_holds_up_its_server_and_gets_all(fleet: Fleet) -> None:
    event = events([1000]).removesuffix(LAST)
    count, sent = 40_000, 0

    async def behaviour(request: Request) -> None:
        nonlocal sent
        await request.head("200 OK", "text/event-stream", "Transfer-Encoding: chunked")
        framed = next(in_chunks(event, repeat(len(event))))
        for _ in range(count):
            await request.say(framed)
            sent += 1
        await request.say(b"".join(in_chunks(LAST, repeat(len(LAST)))))

    fleet.add(behaviour)
    with fleet.gateway() as api, httpx.stream("POST", f"{api.url}/v1/chat/completions", json=BODY, headers=HEADERS, timeout=60) as response:
        before = -1
        while sent != before:
            before = sent
            time.sleep(1)
        assert 0 < sent < count / 2, "what the gateway and the kernel hold has an end"
        digest = hashlib.sha256()
        for part in response.iter_raw():
            digest.update(part)
    assert digest.digest() == hashlib.sha256(event * count + LAST).digest()


def test_parts_come_within_the_callback_that_read_them(fleet: Fleet) -> None:
    """So it is while aiohttp's connector has the place that ours uses."""
    text = events([5] * 20)
    fleet.add(says(*in_chunks(text, repeat(58)), pause_s=0.01))
    [host] = fleet.servers

    async def read() -> tuple[list[bytes], bytes]:
        parts: list[bytes] = []

        def put(part: bytes) -> bool:
            parts.append(part)
            return len(parts) < 5

        async with (
            aiohttp.ClientSession(connector=Connector()) as session,
            session.post(f"http://{host}:{fleet.port}/", json=BODY) as response,
        ):
            assert response.connection is not None
            assert isinstance(response.connection.protocol, ServerConnection)
            await flow(response, put)
            return parts, await response.read()

    parts, rest = asyncio.run(read())
    assert len(parts) == 5
    assert b"".join(parts) + rest == text
