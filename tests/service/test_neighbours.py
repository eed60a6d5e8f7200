"""Servers behind the gateway that fail in every way that servers fail, each fault injected: made-up servers, real processes."""

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama as ollama_client
import openai
import pytest

from tests.service.conftest import KEY
from tests.service.neighbours import DOCUMENT, EVENTS, HEADERS, Asking, Behaviour, Fleet, Request, answers, ask, breaks_off, word
from tests.service.processes import Service
from tests.service.test_gateway import metric


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path).running() as fleet:
        yield fleet


def until(condition: object, timeout_s: float = 40) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def waiting(service: Service) -> float:
    return metric(service, "api_server_waiting_requests", model="a")


def in_flight(service: Service) -> float:
    text = httpx.get(f"{service.metrics_url}/metrics", timeout=10).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("api_server_in_flight_requests{"))


def slowly(seconds: float) -> Behaviour:
    async def behaviour(request: Request) -> None:
        await asyncio.sleep(seconds)
        await request.answer()

    return behaviour


class TestHeldRequests:
    def test_as_many_go_on_as_there_are_places_in_the_order_in_which_they_came(self, fleet: Fleet) -> None:
        with fleet.gateway("/health", {"max_in_flight": 2}, HOLD_S="60") as api:
            asking = Asking(api)
            words = [f"{number}" for number in range(8)]
            for number, each in enumerate(words, 1):
                asking.one(each, stream=number % 2 == 0)
                until(lambda number=number: waiting(api) == number)
            [server] = fleet.add(slowly(0.3))
            until(lambda: server.seen)
            asking.one("late")
            found = asking.all()
            assert {response.status_code for response in found.values()} == {200}
            assert len(found) == 9
            order = [[*words, "late"].index(word(request)) for request in server.seen]
            # Two begin at a time, and of these either connection may be the first to be read.
            assert all(came <= place + 1 for place, came in enumerate(order)), f"nobody overtakes, and they came as {order}"
            assert server.most_at_once == 2
            assert waiting(api) == 0

    def test_a_client_that_leaves_the_line_takes_no_place(self, fleet: Fleet) -> None:
        with fleet.gateway("/health", {"max_in_flight": 1}, HOLD_S="60") as api:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{api.url}/v1/chat/completions", json={"model": "a", "messages": [{"role": "user"}]}, headers=HEADERS, timeout=1
                )
            until(lambda: waiting(api) == 0)
            fleet.add(answers)
            assert ask(api).status_code == 200
            assert in_flight(api) == 0

    def test_while_a_server_is_busy_no_dead_one_is_asked(self, fleet: Fleet) -> None:
        [server] = fleet.add(slowly(0.5))
        fleet.look_up(*fleet.servers, "127.0.0.9")
        with fleet.gateway("/ready", {"max_in_flight": 1}, QUEUE_S="60") as api:
            asking = Asking(api)
            for number in range(4):
                asking.one(f"{number}", stream=number % 2 == 0)
            assert {response.status_code for response in asking.all().values()} == {200}
            assert (len(server.seen), server.most_at_once) == (4, 1)
            assert not [line for line in api.log.read_text().splitlines() if line.endswith("from 127.0.0.9")]


class TestDyingServers:
    def test_a_request_that_kills_its_servers_reaches_two(self, fleet: Fleet) -> None:
        servers = fleet.add(*[breaks_off] * 4)
        with fleet.gateway() as api:
            response = ask(api)
            assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")
            assert sorted(len(server.seen) for server in servers) == [0, 0, 1, 1]

    def test_after_the_first_byte_no_other_server_is_asked(self, fleet: Fleet) -> None:
        async def begins(request: Request) -> None:
            await request.head("200 OK", "application/json", "Content-Length: 1000")
            await request.say(b'{"choices": ')

        servers = fleet.add(begins, begins)
        with fleet.gateway() as api:
            assert ask(api).status_code == 502
            assert sum(len(server.seen) for server in servers) == 1

    def test_one_that_takes_no_connection_has_not_seen_it(self, fleet: Fleet) -> None:
        servers = fleet.add(*[answers] * 4)
        with fleet.gateway() as api:
            for server in servers[:3]:
                fleet.stop(server)
            assert ask(api).status_code == 200

    def test_a_request_that_one_broke_off_waits_for_another_that_is_busy(self, fleet: Fleet) -> None:
        release = threading.Event()

        async def works(request: Request) -> None:
            await asyncio.to_thread(release.wait, 60)
            await request.answer()

        async def breaks_off_later(_: Request) -> None:
            await asyncio.sleep(0.5)

        busy, bad = fleet.add(works, breaks_off_later)
        with fleet.gateway(route={"max_in_flight": 1}, QUEUE_S="60") as api:
            asking = Asking(api)
            number = 0
            while not (busy.at_once and bad.seen):
                asking.one(f"{number}")
                number += 1
                time.sleep(0.1)
            until(lambda: not bad.at_once)
            release.set()
            assert {response.status_code for response in asking.all().values()} == {200}

    def test_one_that_fails_is_out_and_comes_back_slowly(self, fleet: Fleet) -> None:
        fails, go_on = True, threading.Event()

        async def behaviour(request: Request) -> None:
            if fails:
                await request.answer(b'{"error": {"message": "no"}}', "500 Internal Server Error")
                return
            await asyncio.to_thread(go_on.wait, 60)
            await request.answer()

        bad, *good = fleet.add(behaviour, answers, answers)
        with fleet.gateway(route={"max_in_flight": 8}) as api:
            upstream = f"http://fleet.test:{fleet.port}"

            def is_out() -> bool:
                return metric(api, "api_server_upstream_out", upstream=upstream, address="127.0.0.2") == 1

            asked = 0
            while not is_out():
                assert asked < 200
                asked += 1
                ask(api, messages=[{"role": "user", "content": f"{asked}"}])
            assert (len(bad.seen), sum(len(server.seen) for server in good)) == (5, asked - 5)
            for number in range(8):
                ask(api, messages=[{"role": "user", "content": f"more {number}"}])
            assert len(bad.seen) == 5
            assert "127.0.0.2 is out: failed too often in a row" in api.log.read_text()
            fails = False
            until(lambda: not is_out())
            asking, before = Asking(api), sum(len(server.seen) for server in good)
            for number in range(12):
                asking.one(f"again {number}")
            until(lambda: sum(len(server.seen) for server in good) == before + 11)
            go_on.set()
            assert {response.status_code for response in asking.all().values()} == {200}
            assert (len(bad.seen), bad.most_at_once) == (6, 1), "one request at first"

    def test_one_that_is_silent_is_out(self, fleet: Fleet) -> None:
        async def pauses(request: Request) -> None:
            first, _, rest = EVENTS.partition(b"\n\n")
            await request.head("200 OK", "text/event-stream")
            await request.say(first + b"\n\n")
            await asyncio.to_thread(go_on.wait, 60)
            await request.say(rest)

        go_on = threading.Event()
        silent, good = fleet.add(pauses, answers)
        with fleet.gateway(route={"max_in_flight": 16}, SERVER_SILENCE_S="2") as api:
            asking = Asking(api)
            for number in range(12):
                asking.one(f"{number}", stream=True)
            until(lambda: silent.seen)
            until(lambda: metric(api, "api_server_upstream_out", upstream=f"http://fleet.test:{fleet.port}", address="127.0.0.2") == 1)
            before = len(silent.seen)
            assert {ask(api, messages=[{"role": "user", "content": f"{number}"}]).status_code for number in range(20)} == {200}
            assert len(silent.seen) == before
            assert good.seen
            go_on.set()
            assert {response.status_code for response in asking.all().values()} == {200}, "those that it had are not taken from it"

    def test_one_that_reads_a_long_prompt_is_not(self, fleet: Fleet) -> None:
        """Nor one whose answer is no stream: both show nothing for minutes."""
        fleet.add(slowly(6), slowly(6))
        with fleet.gateway(SERVER_SILENCE_S="1") as api:
            asking = Asking(api)
            for number in range(2):
                asking.one(f"{number}", stream=bool(number))
            assert {response.status_code for response in asking.all().values()} == {200}
            assert " is out " not in api.log.read_text()

    def test_a_fleet_that_fails_as_a_whole_is_still_asked(self, fleet: Fleet) -> None:
        async def fails(request: Request) -> None:
            await request.answer(b"{}", "500 Internal Server Error")

        [server] = fleet.add(fails)
        with fleet.gateway() as api:
            assert [ask(api).status_code for _ in range(8)] == [500] * 8
            assert len(server.seen) == 8


class TestLookUps:
    def test_the_last_good_addresses_stay_while_dns_fails(self, fleet: Fleet) -> None:
        fleet.add(answers)
        with fleet.gateway() as api:
            fleet.look_up("again")
            time.sleep(5)
            assert ask(api).status_code == 200
            fleet.look_up()
            until(lambda: ask(api).status_code == 503)

    def test_a_server_that_leaves_and_comes_back_keeps_its_count(self, fleet: Fleet) -> None:
        async def behaviour(request: Request) -> None:
            await asyncio.to_thread(go_on.wait, 60)
            await request.answer()

        go_on = threading.Event()
        fleet.add(behaviour)
        with fleet.gateway(route={"max_in_flight": 1}) as api:
            asking = Asking(api)
            asking.one("first")
            until(lambda: in_flight(api) == 1)
            fleet.look_up()
            until(lambda: ask(api).status_code == 503)
            fleet.look_up(*fleet.servers)
            until(lambda: ask(api).status_code != 503)
            assert ask(api).status_code == 429
            go_on.set()
            assert asking.all()["first"].status_code == 200
            assert in_flight(api) == 0

    def test_an_end_of_the_look_ups_ends_the_process_with_a_line(self, fleet: Fleet) -> None:
        fleet.add(answers)
        with fleet.gateway(DRAIN_DELAY_S="0") as api:
            fleet.look_up("fault")
            assert api.ended() == 1
            log = api.log.read_text()
            assert f"look-up of http://fleet.test:{fleet.port}: got its end (RuntimeError at " in log
            assert "Traceback" not in log


def sends(raw: bytes) -> Behaviour:
    async def behaviour(request: Request) -> None:
        await request.say(raw)

    return behaviour


def http(status: str, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


ODD = {
    "compressed": (http("200 OK", gzip.compress(DOCUMENT), "Content-Encoding: gzip"), 502),
    "redirect": (http("302 Found", b"", "Location: http://127.0.0.1:1/internal"), 502),
    "permanent redirect": (http("308 Permanent Redirect", b"", "Location: http://127.0.0.1:1/internal"), 502),
    "no content": (http("204 No Content", b""), 502),
    "no HTTP": (b"HTP/9 what\r\n\r\n", 502),
    "no word": (b"\r\n\r\n\r\n", 502),
    "endless head": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**20 + b"\r\n\r\n", 502),
    "a page": (http("200 OK", b"<html>Welcome</html>", kind="text/html"), 502),
    "a page that says JSON": (http("200 OK", b"<html>Welcome</html>"), 502),
    "a list": (http("200 OK", b"[]"), 502),
    "cut": (http("200 OK", DOCUMENT)[:-5], 502),
    "cut without a length": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" + DOCUMENT[:-5], 502),
    "bad chunks": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + DOCUMENT, 502),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\n" + DOCUMENT, 502),
    "a page for an error": (http("500 Oh", b"<html>" + b"x" * 100_000, kind="text/html"), 500),
    "deep error": (http("400 Bad", b"[" * 100_000), 400),
    "an error as text": (http("404 Not Found", b"404 page not found", kind="text/plain"), 404),
    "Ollama's error": (http("400 Bad", b'{"error": "no such thing"}'), 400),
    "an error of another shape": (http("422 No", b'{"error": {"message": 5, "code": []}}'), 422),
}


class TestOddAnswers:
    @pytest.mark.parametrize("name", ODD)
    def test_each_is_an_error_in_the_apis_shape(self, fleet: Fleet, name: str) -> None:
        raw, status = ODD[name]
        fleet.add(sends(raw))
        with fleet.gateway() as api:
            for stream in (False, True):
                response = ask(api, stream=stream)
                assert response.status_code == status, response.text
                error = response.json()["error"]
                assert set(error) == {"message", "type", "code", "param"}
                assert isinstance(error["message"], str)
            assert "Traceback" not in api.log.read_text()
            assert in_flight(api) == 0

    def test_the_servers_own_words_come_through(self, fleet: Fleet) -> None:
        error = {"message": "too hot", "type": "invalid_request_error", "code": "hot", "param": "temperature"}
        fleet.add(sends(http("400 Bad", json.dumps({"error": error}).encode())))
        with fleet.gateway() as api:
            assert ask(api).json()["error"] == error

    @pytest.mark.parametrize(
        "raw",
        [EVENTS[:40], EVENTS.partition(b"data: [DONE]")[0], b"data: {}\n\n" + b"data: " + b"x" * 3 * 2**20],
        ids=["half", "no end", "long"],
    )
    def test_a_stream_that_breaks_off_has_an_error_and_no_done(self, fleet: Fleet, raw: bytes) -> None:
        """A close is the regular end of an answer without a length, so it does not show by itself."""
        fleet.add(sends(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + raw))
        with fleet.gateway() as api:
            response = ask(api, stream=True)
            if response.status_code == 200:
                assert json.loads(response.text.split("data: ")[-1])["error"]["code"] == "upstream_error"
            else:
                assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")
            assert "[DONE]" not in response.text


TURN = {"model": "a", "message": {"role": "assistant", "content": "Hello."}}


async def is_a_slow_ollama(request: Request) -> None:
    """Takes a second to count and a second to read a prompt."""
    lists = {"models": [{"name": "a:latest"}]}
    if request.path in ("/api/tags", "/api/ps"):
        await request.answer(json.dumps(lists).encode())
        return
    await asyncio.sleep(1)
    if request.body.get("stream") is False:
        await request.answer(json.dumps({**TURN, "done": True, "prompt_eval_count": 9}).encode())
        return
    lines = [{**TURN, "done": False}, {**TURN, "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 1}]
    await request.head("200 OK", "application/x-ndjson")
    for line in lines:
        await request.say(json.dumps(line).encode() + b"\n")
        await asyncio.sleep(1)


class TestSignsOfLife:
    def test_openais_client_skips_them(self, fleet: Fleet) -> None:
        fleet.add(slowly(2))
        with fleet.gateway(SILENCE_S="0.5") as api:
            assert ask(api, stream=True).text.startswith(": working\n\n: working\n\n")
            with openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0) as client:
                chunks = client.chat.completions.create(model="a", messages=[{"role": "user", "content": "Say it."}], stream=True)
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello."

    def test_ollamas_client_skips_them_while_a_prompt_is_counted_and_read(self, fleet: Fleet) -> None:
        fleet.add(is_a_slow_ollama)
        route: dict[str, object] = {"engine": "ollama", "context_length": 2048}
        with fleet.gateway(route=route, SILENCE_S="0.4") as api:
            body = {"model": "a", "messages": [{"role": "user", "content": "Say it."}]}
            text = httpx.post(f"{api.url}/api/chat", json=body, headers=HEADERS, timeout=60).text
            lines = text.splitlines()
            assert lines[0].startswith("    "), "at least two signs for the count, and two for the prompt"
            assert lines[1].startswith(" "), "and between two lines"
            assert text.endswith("}\n"), "none after the last"
            with ollama_client.Client(api.url, headers=HEADERS) as client:
                said = [part.message.content for part in client.chat("a", [{"role": "user", "content": "Say it."}], stream=True)]
                assert said == ["Hello.", "Hello."]

    def test_a_failure_after_them_is_said_within_the_stream(self, fleet: Fleet) -> None:
        async def late(request: Request) -> None:
            await asyncio.sleep(1.5)
            await request.answer(b'{"error": {"message": "too hot", "type": "invalid_request_error"}}', "400 Bad Request")

        fleet.add(late)
        with fleet.gateway(SILENCE_S="0.5") as api:
            response = ask(api, stream=True)
            assert response.status_code == 200
            assert json.loads(response.text.split("data: ")[-1])["error"]["message"] == "too hot"
            assert "[DONE]" not in response.text

    def test_the_status_is_a_servers_own_when_it_comes_in_time(self, fleet: Fleet) -> None:
        async def refuses(request: Request) -> None:
            await asyncio.sleep(1)
            await request.answer(b'{"error": {"message": "full"}}', "503 Service Unavailable")

        fleet.add(refuses)
        with fleet.gateway(SILENCE_S="5") as api:
            assert ask(api, stream=True).status_code == 503
