"""Requests larger than a pod can take: the process has the memory of one, and made-up servers behind it."""

import asyncio
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster import cgroups
from tests.service.conftest import KEY
from tests.service.neighbours import Fleet, Request, answers, ask
from tests.service.processes import Service

MIB = 2**20
POD = 512 * MIB
"""Production's limit for the API server."""
SMALL_POD = 128 * MIB
"""And that of the development stack."""
BODY = 32 * MIB
LOOP_S = 0.1
"""What a body may take of the loop, in seconds of CPU."""
START = b'{"model": "a", "messages": ['
HOSTILE = {
    "empty objects": (START, b"{},"),
    "one object in another": (START, b'{"a":'),
    "lists": (START, b"["),
    "pairs": (START + b"{", b'"a":1,'),
    "marks in a text": (START + b'{"role": "user", "content": "', b"{,:["),
    "escapes": (START + b'{"role": "user", "content": "', b"\\u00e9"),
    "one wide character": (START + '{"role": "user", "content": "\N{GRINNING FACE}'.encode(), b"x" * 64),
    "numbers": (START, b"1.5,"),
    "spaces": (START, b" " * 64),
}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path).running() as fleet:
        fleet.add(answers)
        yield fleet


def peak(service: Service) -> int:
    """Bytes of memory that the process ever had."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@contextmanager
def limited(memory: int) -> Iterator[Path]:
    """A control group whose processes have so many bytes together, as a container has: more than that kills them."""
    unified, before = cgroups.unified(), cgroups.passed_on()
    if unified and "memory" not in before:
        (cgroups.ROOT / "cgroup.subtree_control").write_text("+memory")
    root = next(path for path in cgroups.hierarchies() if unified or "memory" in path.name.split(","))
    group = root / f"modelfleet-test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(memory))
        yield group
    finally:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        group.rmdir()
        cgroups.withdraw(set(cgroups.passed_on()) - set(before))


def killed(group: Path) -> int:
    """How many processes the limit has killed."""
    text = next(path for name in ("memory.events", "memory.oom_control") if (path := group / name).exists()).read_text()
    return int(re.findall(r"^oom_kill (\d+)", text, re.MULTILINE)[0])


def cpu_s(service: Service, thread: int = 0) -> float:
    """Seconds of CPU of one thread, or of all that there are: what other processes do meanwhile does not count."""
    tasks = Path(f"/proc/{service.process.pid}/task")
    spent = 0
    for task in [tasks / str(thread)] if thread else list(tasks.iterdir()):
        with suppress(FileNotFoundError):
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def reserved(service: Service) -> float:
    text = httpx.get(f"{service.metrics_url}/metrics", timeout=10).text
    return float(re.findall(r"^api_server_reserved_bytes (\S+)", text, re.MULTILINE)[0])


def connected(service: Service) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def head(length: int) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: a", f"x-api-key: {KEY}", f"Content-Length: {length}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode()


def sent(service: Service, start: bytes, filling: bytes) -> int:
    """The status of an answer to a body of BODY bytes. A server that has seen enough may close before it got all of them."""
    body = (start + filling * (BODY // len(filling) + 1))[:BODY]
    with closing(connected(service)) as connection:
        with suppress(ConnectionError):
            connection.sendall(head(BODY) + body)
        return int(connection.recv(4096).split()[1])


@pytest.mark.parametrize("memory", [SMALL_POD, POD])
def test_no_body_of_32_mib_takes_more_memory_than_the_pod_has(fleet: Fleet, memory: int) -> None:
    with fleet.gateway(MEMORY_BYTES=str(memory), REQUEST_TIMEOUT_S="60") as api:
        for name, (start, filling) in HOSTILE.items():
            status = sent(api, start, filling)
            # The empty spaces alone are few values of one byte each, and end where the body ends.
            assert status in (400, 413), name
        threads = [threading.Thread(target=sent, args=(api, *HOSTILE["one wide character"])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ask(api).status_code == 200
        assert reserved(api) == 0
        assert peak(api) < memory


@pytest.mark.parametrize("memory", [SMALL_POD, POD])
def test_a_process_with_the_memory_of_its_pod_lives_and_says_so_meanwhile(fleet: Fleet, memory: int) -> None:
    """The loop is the first thread. Whatever keeps it, work of its own or another thread that holds Python's lock, is CPU of this process,
    so that what is spent between a question and its answer bounds the delay, on a machine that does much else too."""
    with (
        limited(memory) as group,
        fleet.gateway(group=group, MEMORY_BYTES=str(memory), REQUEST_TIMEOUT_S="60") as api,
        closing(connected(api)) as probe,
    ):
        loop = api.process.pid

        def is_healthy() -> bool:
            probe.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            return probe.recv(4096).startswith(b"HTTP/1.1 200 ")

        assert is_healthy()
        for name, (start, filling) in HOSTILE.items():
            before, delays = cpu_s(api, loop), []
            sending = threading.Thread(target=sent, args=(api, start, filling))
            sending.start()
            while sending.is_alive() or not delays:
                asked = cpu_s(api)
                assert is_healthy(), name
                delays.append(cpu_s(api) - asked)
            assert max(delays) < LOOP_S, name
            # What is refused early costs no more than that in all, however often the loop comes up for air.
            assert name != "empty objects" or cpu_s(api, loop) - before < LOOP_S
        assert ask(api).status_code == 200
        assert (reserved(api), killed(group)) == (0, 0)


def test_too_many_values_are_refused_while_they_come(fleet: Fleet) -> None:
    """So a body costs no more than its beginning: the rest of it is never sent here."""
    with fleet.gateway(MEMORY_BYTES=str(POD)) as api:
        for name in ("empty objects", "lists", "pairs", "numbers"):
            start, filling = HOSTILE[name]
            with closing(connected(api)) as connection:
                connection.sendall(head(BODY) + start + filling * (MIB // len(filling)))
                answer = connection.recv(4096)
            assert b" 413 " in answer.partition(b"\r\n")[0], name
            assert b"JSON values" in answer


def test_a_body_is_refused_by_its_length_before_any_of_it(fleet: Fleet) -> None:
    with fleet.gateway(MEMORY_BYTES=str(SMALL_POD)) as api, closing(connected(api)) as connection:
        connection.sendall(head(BODY))
        assert b" 413 " in connection.recv(4096).partition(b"\r\n")[0]


def test_the_longest_honest_request_passes(fleet: Fleet) -> None:
    """Of an agent: a context of 128 Ki tokens full of code, with the schemas of a hundred tools, in the smaller pod; and with one word that
    is not ASCII."""
    context = 131_072
    code = 'def f(a: int, b: dict[str, list[int]]) -> None:\n    return {"a": [a, b], "c": f"{a}: {b}"}\n'
    messages = [{"role": "user" if number % 2 else "assistant", "content": code * 40} for number in range(context * 5 // (len(code) * 40))]
    properties = {f"field_{number}": {"type": "string", "description": "What it is for, in some words."} for number in range(10)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    tools = [{"type": "function", "function": {"name": f"tool_{number}", "parameters": schema}} for number in range(100)]
    with fleet.gateway(route={"context_length": context}, MEMORY_BYTES=str(SMALL_POD)) as api:
        for word in ("voila", "voilà"):
            messages[-1]["content"] = word
            assert ask(api, messages=messages, tools=tools).status_code == 200
        emojis = [{"role": "user", "content": "\N{GRINNING FACE} et voilà " * (context // 8)}]
        assert ask(api, messages=emojis).status_code == 200
        [server] = fleet.servers.values()
        assert server.seen[-2].body["messages"] == messages
        assert server.seen[-1].body["messages"] == emojis
        assert peak(api) < SMALL_POD


def test_requests_in_flight_share_the_memory_and_give_it_back_with_the_first_byte(tmp_path: Path) -> None:
    release = threading.Event()

    async def waits(request: Request) -> None:
        await asyncio.to_thread(release.wait, 60)
        await request.answer()

    with Fleet(tmp_path).running() as fleet:
        fleet.add(waits)
        with fleet.gateway(MEMORY_BYTES=str(SMALL_POD)) as api:
            statuses: list[int] = []
            large = [{"role": "user", "content": "x" * 7 * MIB}]
            first = threading.Thread(target=lambda: statuses.append(ask(api, messages=large).status_code))
            first.start()
            deadline = time.monotonic() + 30
            while reserved(api) < 20 * MIB:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            refused = ask(api, messages=large)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
            assert refused.json()["error"]["code"] == "server_busy"
            release.set()
            first.join()
            assert statuses == [200]
            assert reserved(api) == 0
            assert ask(api, messages=large).status_code == 200


def test_a_field_of_another_type_is_refused_by_name(fleet: Fleet) -> None:
    with fleet.gateway() as api:
        wrong: tuple[tuple[str, Any, str], ...] = (
            ("temperature", "hot", "temperature: got str, want int or float or null; correct it"),
            ("max_tokens", True, "max_tokens: got bool, want int or float or null; correct it"),
            ("stop", [1], "stop[0]: got int, want str; correct it"),
            ("tools", {}, "tools: got object, want array or null; correct it"),
            ("messages", "hi", "messages: got str, want array; correct it"),
            ("stream", "yes", "stream: got str, want bool or null; correct it"),
        )
        for field, value, said in wrong:
            refused = ask(api, **{field: value})
            assert (refused.status_code, refused.json()["error"]["message"]) == (400, said)
            assert refused.json()["error"]["param"] == said.partition(":")[0]
        assert ask(api, temperature=None, stop=None, tools=None, stream=None, max_tokens=64.0, seed=2**70).status_code == 200
        whole = json.dumps({"model": "a", "messages": [{"role": "user", "content": "x"}], "seed": 1}).encode()
        assert httpx.post(f"{api.url}/v1/chat/completions", content=b"\xef\xbb\xbf" + whole, headers={"x-api-key": KEY}).status_code == 200
