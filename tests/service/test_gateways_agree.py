"""Several API servers before one fleet: what they agree on over the cache server, and that nothing of it can stop a request."""

import asyncio
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import redis
from aiohttp import web

from api_server.aliases import Aliases
from api_server.app import ApiServer
from api_server.keys import Keys
from api_server.peers import ALIVE_S, Word
from api_server.settings import Settings
from api_server.settling import PERIOD_S, STREAM, Settler
from components.cache import role_password
from tests.service.conftest import KEY, PASSWORD, as_user, running_valkey
from tests.service.neighbours import HEADERS, Asking, Fleet, Request, answers, ask, breaks_off
from tests.service.processes import Service, free_port, talking_nonsense
from tests.service.test_gateway import metric
from tests.service.test_named_keys import ALICE, BOB, grant, wait_until

TOLD_S = 2.5 * PERIOD_S
"""In which everybody has heard of what was done before."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path).running() as made:
        yield made


class Gateways:
    """Of one fleet, with a cache server of their own."""

    def __init__(self, stack: ExitStack, fleet: Fleet, work: Path, **env: str) -> None:
        self.port, self.work = free_port(), work
        self._stack, self._fleet = stack, fleet
        self._env = {**as_user(f"redis://127.0.0.1:{self.port}/0", "api-server", work), "GATEWAYS": "2", "QUEUE_S": "30", **env}
        self.members: list[Service] = []

    def start_cache(self, **how: Any) -> "subprocess.Popen[bytes]":
        return self._stack.enter_context(running_valkey(self.work, self.port, **how))

    def start(self, count: int = 2, route: dict[str, object] | None = None) -> list[Service]:
        """They agree when this returns, if there is a cache server."""
        self.members += [self._stack.enter_context(self._fleet.gateway("/ready", route, None, **self._env)) for _ in range(count)]
        return self.members

    def agree(self, count: int | None = None) -> None:
        for member in self.members:
            wait_until(lambda member=member: metric_of(member, "api_server_agrees") == 1)
            wait_until(lambda member=member: metric_of(member, "api_server_gateways") == (count or len(self.members)))

    def disagree(self) -> None:
        for member in self.members:
            wait_until(lambda member=member: metric_of(member, "api_server_agrees") == 0)


@pytest.fixture
def gateways(fleet: Fleet, tmp_path: Path) -> Iterator[Gateways]:
    with ExitStack() as stack:
        yield Gateways(stack, fleet, tmp_path)


def metric_of(service: Service, name: str) -> float:
    """One without labels."""
    text = httpx.get(f"{service.metrics_url}/metrics", timeout=10, trust_env=False).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def keys(work: Path, **named: dict[str, Any]) -> None:
    (work / "keys").write_text(json.dumps(named))
    (work / "gateway-2").mkdir()
    (work / "gateway-2" / "keys").write_text(json.dumps(named))


def let_in(service: Service, key: str, times: int) -> int:
    """How many of so many requests in a row are not refused."""
    body = {"model": "a", "messages": [{"role": "user", "content": "?"}]}
    found = [
        httpx.post(f"{service.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30).status_code
        for _ in range(times)
    ]
    assert set(found) <= {200, 429}
    return found.count(200)


def test_a_fault_of_ours_ends_the_process_and_is_none_of_the_cache_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "keys").write_text(KEY)

    def fault(_: Settler, __: object) -> Word:
        raise TypeError

    async def ends() -> bool:
        settings = Settings.read()
        async with aiohttp.ClientSession() as session:
            server = ApiServer(settings, Keys(settings.keys_file), Aliases(None, settings.routes), session)
            runner = web.AppRunner(server.app())
            await runner.setup()
            async with asyncio.timeout(10):
                await server.stop.wait()
            await runner.cleanup()
        return server.failed

    routes = json.dumps({"a": {"url": "http://127.0.0.1:1"}})
    for name, value in {"KEYS_FILE": tmp_path / "keys", "ROUTES": routes, "CACHE_URL": f"redis://127.0.0.1:{free_port()}/0"}.items():
        monkeypatch.setenv(f"API_SERVER_{name}", str(value))
    monkeypatch.setattr(Settler, "_word", fault)
    assert asyncio.run(ends())
    assert "agreement with other API servers: got its end (TypeError at " in caplog.text
    assert "keeps to its share" not in caplog.text


def test_a_limit_holds_over_all_and_without_word_of_each_other_each_has_its_share(gateways: Gateways, fleet: Fleet) -> None:
    fleet.add(answers)
    keys(gateways.work, alice=grant(ALICE, requestsPerMinute=10), bob=grant(BOB, requestsPerMinute=10))
    cache = gateways.start_cache()
    one, two = gateways.start()
    gateways.agree()
    assert let_in(one, ALICE, 7) == 7
    time.sleep(TOLD_S)
    assert let_in(two, ALICE, 7) == 3
    cache.send_signal(signal.SIGSTOP)
    gateways.disagree()
    assert (let_in(one, BOB, 7), let_in(two, BOB, 7)) == (5, 5)
    cache.send_signal(signal.SIGCONT)
    gateways.agree()
    time.sleep(TOLD_S)
    assert (let_in(one, BOB, 1), let_in(two, BOB, 1)) == (0, 0), "what was used meanwhile is told later"


def test_a_conversation_goes_on_where_its_prompt_is_whichever_gateway_its_turns_come_to(gateways: Gateways, fleet: Fleet) -> None:
    first, second = fleet.add(answers, answers)
    gateways.start_cache()
    one, two = gateways.start()
    gateways.agree()
    messages: list[dict[str, str]] = [{"role": "user", "content": "Say it."}]
    ask(one, messages=messages)
    held = first if first.seen else second
    # Where it began is where every gateway would have put it; so it has to move.
    held.behaviour = breaks_off
    messages += [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Again."}]
    assert ask(one, messages=messages).status_code == 200
    held.behaviour = answers
    moved = second if held is first else first
    before = len(moved.seen)
    time.sleep(TOLD_S)
    (three,) = gateways.start(1)[2:]
    gateways.agree()
    for gateway in (two, three, one):
        messages += [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Again."}]
        assert ask(gateway, messages=messages).status_code == 200
        assert metric(gateway, "api_server_turns_total", model="a", reason="bound") >= 1
        time.sleep(TOLD_S)
    assert len(moved.seen) == before + 3


def test_the_places_of_a_server_are_divided_and_none_is_idle_while_somebody_waits(gateways: Gateways, fleet: Fleet) -> None:
    go_on = threading.Event()

    async def slow(request: Request) -> None:
        await asyncio.to_thread(go_on.wait, 60)
        await request.answer()

    (server,) = fleet.add(slow)
    gateways.start_cache()
    one, two = gateways.start(route={"max_in_flight": 4})
    gateways.agree()
    asked = [Asking(one), Asking(two)]
    for number in range(8):
        asked[0].one(f"one {number}")
    wait_until(lambda: server.at_once == 4)
    time.sleep(TOLD_S)
    for number in range(8):
        asked[1].one(f"two {number}")
    time.sleep(TOLD_S)
    assert server.at_once == 4, "the second one waits for what the first one has"
    go_on.set()
    found = [answer.status_code for each in asked for answer in each.all().values()]
    assert found == [200] * 16
    assert server.most_at_once <= 4


def test_what_one_that_died_had_is_free_soon(gateways: Gateways, fleet: Fleet) -> None:
    async def forever(request: Request) -> None:
        await asyncio.sleep(60 if "one" in str(request.body) else 0)
        await request.answer()

    (server,) = fleet.add(forever)
    gateways.start_cache()
    one, two = gateways.start(route={"max_in_flight": 2})
    gateways.agree()
    pool = ThreadPoolExecutor(4)
    futures = [pool.submit(ask, one, messages=[{"role": "user", "content": f"one {number}"}]) for number in range(2)]
    wait_until(lambda: server.at_once == 2)
    time.sleep(TOLD_S)
    waits = pool.submit(ask, two, messages=[{"role": "user", "content": "two"}])
    time.sleep(TOLD_S)
    assert not waits.done()
    one.process.kill()
    assert waits.result(ALIVE_S + 5).status_code == 200
    assert all(isinstance(future.exception(10), httpx.HTTPError) for future in futures)
    pool.shutdown()


def full(gateways: Gateways) -> None:
    with redis.Redis(port=gateways.port, password=PASSWORD) as cache:
        cache.config_set("maxmemory-policy", "noeviction")
        cache.config_set("maxmemory", "1")


def forbidden(gateways: Gateways) -> None:
    with redis.Redis(port=gateways.port, password=PASSWORD) as cache:
        cache.execute_command("ACL", "SETUSER", "api-server", "-@all")
        cache.execute_command("CLIENT", "KILL", "USER", "api-server")


def strange(gateways: Gateways) -> None:
    """The stream holds what no API server wrote, or is no stream at all."""
    with redis.Redis(port=gateways.port, password=PASSWORD) as cache:
        for data in (b"", b"\xff" * 100, b"\x90", b"\xdd\xff\xff\xff\xff", b"\xc1", b"\x81\xa1a" * 5000):
            cache.xadd(STREAM, {"w": data})
        cache.xadd(STREAM, {"other": b"x"})
    time.sleep(TOLD_S)
    gateways.agree()
    with redis.Redis(port=gateways.port, password=PASSWORD) as cache:
        cache.delete(STREAM)
        cache.set(STREAM, "text")


TROUBLES: dict[str, Callable[[Gateways], None]] = {"full": full, "forbidden": forbidden, "strange": strange}


@pytest.mark.parametrize("trouble", ["stopped", "killed", "another program", *TROUBLES])
def test_a_cache_server_in_trouble_costs_no_request_and_no_time(gateways: Gateways, fleet: Fleet, trouble: str) -> None:
    fleet.add(answers, answers)
    cache = gateways.start_cache()
    gateways.start()
    gateways.agree()
    ended = threading.Event()
    took: list[tuple[int, float]] = []

    def load(service: Service) -> None:
        with httpx.Client(base_url=service.url, headers=HEADERS, timeout=30, trust_env=False) as client:
            while not ended.is_set():
                began = time.monotonic()
                body = {"model": "a", "messages": [{"role": "user", "content": str(began)}]}
                took.append((client.post("/v1/chat/completions", json=body).status_code, time.monotonic() - began))
                time.sleep(0.02)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(load, member) for member in gateways.members]
        try:
            if trouble == "stopped":
                cache.send_signal(signal.SIGSTOP)
            elif trouble in TROUBLES:
                TROUBLES[trouble](gateways)
            else:
                cache.kill()
                cache.wait()
            if trouble == "another program":
                with talking_nonsense(gateways.port):
                    gateways.disagree()
                    time.sleep(TOLD_S)
            gateways.disagree()
        finally:
            ended.set()
        for each in running:
            each.result(30)
    assert {status for status, _ in took} == {200}
    # Whoever waited for the cache server would wait in each of them; a machine that is busy elsewhere holds up a few.
    assert sorted(seconds for _, seconds in took)[int(0.95 * len(took))] < PERIOD_S / 2
    assert all(member.process.poll() is None for member in gateways.members)
    log = gateways.members[0].log.read_text()
    assert log.count("keeps to its share") == 1, "it is said once"
    assert not [secret for secret in (PASSWORD, KEY, role_password(PASSWORD, "api-server")) if secret in log]


def test_they_agree_again_with_a_cache_server_that_came_back_empty(gateways: Gateways, fleet: Fleet) -> None:
    fleet.add(answers)
    cache = gateways.start_cache()
    gateways.start()
    gateways.agree()
    cache.kill()
    cache.wait()
    gateways.disagree()
    gateways.start_cache()
    gateways.agree()


def test_one_that_drains_is_counted_no_more_before_it_ends(gateways: Gateways, fleet: Fleet) -> None:
    async def slow(request: Request) -> None:
        await asyncio.sleep(6)
        await request.answer()

    fleet.add(slow)
    gateways.start_cache()
    one, two = gateways.start()
    gateways.agree()
    asked = Asking(one)
    asked.one("slow")
    time.sleep(0.5)
    one.process.terminate()
    wait_until(lambda: metric_of(two, "api_server_gateways") == 1, 5)
    assert one.process.poll() is None
    assert asked.all()["slow"].status_code == 200
