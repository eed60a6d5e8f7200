"""New conversations wait for memory: those that servers hold go on, and nobody waits for ever."""

import asyncio
from collections.abc import Coroutine
from contextlib import closing
from typing import Any

import pytest
from msgspec.structs import replace

from api_server.address import Address
from api_server.bindings import LEASE_S, SLICE_S, SMALL, Bindings
from api_server.pauses import PAUSE_S, SHORTEST_PAUSE_S
from api_server.peers import Talk, Told
from api_server.place import Place, Wanted
from api_server.room import Room
from api_server.sessions import Turn
from api_server.settings import Route
from api_server.upstreams import Upstream

SIZE = 20_000
"""Bytes of a conversation: a server has room for two in its cache, by way of its slot."""
ROUTE = Route(url="http://fleet.test:1", slots=1, cached_tokens=13_400)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fleet(clock: Clock, servers: int = 1, places: int = 8) -> Upstream:
    found = Upstream("http://fleet.test:1", places, lines=True)
    found.conversations["a"] = Bindings(clock=clock)
    for number in range(servers):
        found.addresses[f"h{number}"] = Address(f"h{number}", 1)
    return found


def wanted(name: str, size: int = SIZE, owner: bytes = b"key", route: Route = ROUTE, priority: int = 0) -> Wanted:
    return Wanted(route, "a", Turn((name.encode(),), name.encode(), size, b"", owner, goes_on=True), priority=priority)


def answered(upstream: Upstream, name: str, **fields: Any) -> Place:
    """A turn that its server takes at once, and ends."""
    place = upstream.take(wanted(name, **fields))
    assert place is not None
    upstream.worked(place)
    upstream.release(place)
    return place


def in_a_loop(work: Coroutine[Any, Any, None]) -> None:
    with closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(work)


def test_those_that_are_held_go_on_while_a_new_one_waits(clock: Clock) -> None:
    upstream = fleet(clock)
    answered(upstream, "one")
    answered(upstream, "two")
    assert upstream.take(wanted("three")) is None
    assert [answered(upstream, name).reason for name in ("one", "two")] == ["bound", "bound"]
    clock.now += PAUSE_S + 1
    assert answered(upstream, "three").reason == "new"
    assert upstream.take(wanted("one", SIZE + 1000)) is None, "it made room, and waits now"
    assert answered(upstream, "two", size=SIZE - 500).reason == "bound"


def conversation(upstream: Upstream, clock: Clock, pauses: list[float]) -> None:
    """One that ends, with these seconds between its turns."""
    answered(upstream, "with pauses")
    for pause in pauses:
        clock.now += pause
        answered(upstream, "with pauses")


def assert_new_ones_wait_for(seconds: float, upstream: Upstream, clock: Clock) -> None:
    """A server holds a conversation that is silent from now on for so long, and no longer."""
    clock.now += seconds - 1
    assert upstream.take(wanted("a new one")) is None
    clock.now += 2
    assert answered(upstream, "a new one").reason == "new"


@pytest.mark.parametrize(
    ("pauses", "learned"),
    [
        ([1.0] * 20, PAUSE_S),
        ([1.0] * 100, SHORTEST_PAUSE_S),
        ([8.0] * 100, 12.0),
        ([1.0, 300.0] * 50, PAUSE_S),
        # One in a hundred is rare, and two are not; what was long ago is forgotten.
        ([1.0] * 99 + [20.0], 30.0),
        ([1.0] * 200 + [20.0], SHORTEST_PAUSE_S),
        ([300.0] * 100 + [8.0] * 520, 12.0),
        ([-5.0] * 100, SHORTEST_PAUSE_S),
    ],
)
def test_room_is_kept_for_as_long_as_pauses_turn_out_to_be(clock: Clock, pauses: list[float], learned: float) -> None:
    upstream = fleet(clock)
    conversation(upstream, clock, pauses)
    assert upstream.conversations["a"].pauses.of(b"key").usual_s == learned
    assert upstream.take(wanted("two")) is not None, "it stays at work"
    assert_new_ones_wait_for(learned, upstream, clock)


def test_a_hasty_key_takes_no_memory_from_a_slow_one(clock: Clock) -> None:
    upstream = fleet(clock)
    for _ in range(100):
        answered(upstream, "hasty", owner=b"hasty")
        clock.now += 0.1
    answered(upstream, "slow", owner=b"slow")
    assert upstream.take(wanted("hasty", owner=b"hasty")) is not None, "it stays at work"
    assert_new_ones_wait_for(PAUSE_S, upstream, clock)


def test_each_pause_counts_once_however_often_its_turn_is_asked_about(clock: Clock) -> None:
    upstream = fleet(clock)
    answered(upstream, "one")
    answered(upstream, "two")
    clock.now += PAUSE_S + 1
    answered(upstream, "three")
    answered(upstream, "two")
    for _ in range(200):
        clock.now += PAUSE_S / 400
        assert upstream.take(wanted("one")) is None, "it made room, and waits now"
    assert upstream.conversations["a"].pauses.of(b"key").usual_s == PAUSE_S


def test_a_turn_that_another_api_server_has_is_no_pause(clock: Clock) -> None:
    upstream = fleet(clock)
    conversations = upstream.conversations["a"]
    for _ in range(100):
        answered(upstream, "one")
        conversations.hear(Talk([], [b"one"], {}), None, 0.0)
        clock.now += 8
    assert conversations.pauses.of(b"key").usual_s == PAUSE_S


def test_a_server_with_nothing_at_work_makes_room_sooner(clock: Clock) -> None:
    """Both wait for agents of their own, which wait for room."""
    upstream = fleet(clock)
    conversation(upstream, clock, [4.0] * 20)
    answered(upstream, "two")
    assert_new_ones_wait_for(6, upstream, clock)


@pytest.mark.parametrize("elsewhere", [{"talk": Talk([], [b"two"], {})}, {"coming": {"h0": (1, SIZE)}}])
def test_a_server_at_which_another_api_server_works_has_something_at_work(clock: Clock, elsewhere: dict[str, Any]) -> None:
    upstream = fleet(clock)
    conversations = upstream.conversations["a"]
    conversation(upstream, clock, [4.0] * 20)
    answered(upstream, "two")
    conversations.coming.elsewhere = elsewhere.get("coming", {})
    for _ in range(int(PAUSE_S) - 1):
        clock.now += 1
        conversations.hear(elsewhere.get("talk", Talk([], [], {})), None, 0.0)
        assert upstream.take(wanted("an agent of the first")) is None


def test_the_pauses_of_a_key_that_went_are_forgotten(clock: Clock) -> None:
    upstream = fleet(clock)
    conversations = upstream.conversations["a"]
    conversation(upstream, clock, [1.0] * 100)
    told = [Told(b"", b"%d" % number, "h0", SIZE, b"owner %d" % number, 1) for number in range(10)]
    conversations.hear(Talk(told, [], {}), Room(0, 2 * SIZE), 0.0)
    assert upstream.take(wanted("another")) is None
    assert len(conversations.pauses) == 1, "what others tell of teaches nothing"
    assert conversations.pauses.of(b"key").usual_s == SHORTEST_PAUSE_S
    clock.now += LEASE_S + 1
    conversations.expire()
    assert len(conversations.pauses) == 0


def test_of_conversations_that_grow_the_youngest_leaves_the_line(clock: Clock) -> None:
    """All have turns, so that none is silent, and together they need more than there is."""

    async def line() -> None:
        upstream = fleet(clock, places=1)
        for name in ("one", "two"):
            answered(upstream, name)
            clock.now += 1
        first = upstream.take(wanted("one", 2 * SIZE))
        assert first is not None
        second = asyncio.create_task(upstream.wait(wanted("two", 2 * SIZE), 3600))
        await asyncio.sleep(0)
        upstream.worked(first)
        upstream.release(first)
        await asyncio.sleep(0)
        assert not second.done(), "it needs room now"
        assert answered(upstream, "one", size=3 * SIZE).reason == "bound"
        clock.now += PAUSE_S + 1
        upstream.admit()
        assert (await second).reason == "paused"

    in_a_loop(line())


def test_each_server_has_room_of_its_own(clock: Clock) -> None:
    upstream = fleet(clock, servers=3)
    hosts = [answered(upstream, f"conversation {number}").address.host for number in range(6)]
    assert sorted(hosts) == ["h0", "h0", "h1", "h1", "h2", "h2"]
    assert upstream.take(wanted("seven")) is None


def test_what_was_sent_and_not_answered_yet_takes_room_until_it_fails(clock: Clock) -> None:
    upstream = fleet(clock)
    places = [upstream.take(wanted(name)) for name in ("one", "two")]
    assert None not in places
    assert upstream.take(wanted("three")) is None
    for place in places:
        assert place is not None
        upstream.release(place)
    answered(upstream, "three")
    answered(upstream, "four")


def test_what_is_small_or_no_conversation_or_failed_elsewhere_or_has_no_figures_does_not_wait(clock: Clock) -> None:
    upstream = fleet(clock, servers=2)
    for number in range(4):
        answered(upstream, str(number))
    assert upstream.take(wanted("five")) is None
    for each in (
        wanted("a title", SMALL),
        Wanted(ROUTE, "a", Turn(size=SIZE)),
        Wanted(ROUTE, "a", replace(wanted("text").turn, goes_on=False)),
        wanted("five").elsewhere("h0"),
        wanted("five", route=ROUTE.model_copy(update={"slots": 0})),
    ):
        place = upstream.take(each)
        assert place is not None
        upstream.release(place)


def test_a_turn_stays_with_a_busy_server_where_memory_is_known(clock: Clock) -> None:
    """Without figures it would move, as nothing is ahead of the other one."""
    upstream = fleet(clock, servers=2, places=4)
    home = answered(upstream, "one").address
    home.load += 10 * SIZE
    assert answered(upstream, "one").address is home
    home.in_flight = 4
    assert upstream.take(wanted("one")) is None


def test_the_oldest_conversation_is_first_in_line(clock: Clock) -> None:
    async def line() -> None:
        upstream = fleet(clock)
        answered(upstream, "old")
        answered(upstream, "one")
        clock.now += PAUSE_S + 1
        answered(upstream, "two")  # The server forgets `old` for it.
        answered(upstream, "one")
        waiting: dict[str, asyncio.Task[Place]] = {}
        for name in ("new", "old"):
            assert upstream.take(wanted(name)) is None
            waiting[name] = asyncio.create_task(upstream.wait(wanted(name), 10))
            await asyncio.sleep(0)
        clock.now += PAUSE_S + 1
        answered(upstream, "one", size=SIZE)
        first = await waiting["old"]
        assert (first.reason, waiting["new"].done()) == ("paused", False)
        assert upstream.take(wanted("newest")) is None, "nobody overtakes"
        upstream.worked(first)
        upstream.release(first)
        clock.now += PAUSE_S + 1
        upstream.release(await asyncio.wait_for(asyncio.shield(released(upstream, waiting["new"])), 5))

    async def released(upstream: Upstream, task: "asyncio.Task[Place]") -> Place:
        answered(upstream, "one", size=SIZE)
        return await task

    in_a_loop(line())


def test_the_key_that_holds_least_is_first_among_those_that_need_room(clock: Clock) -> None:
    async def line() -> None:
        upstream = fleet(clock)
        answered(upstream, "one", owner=b"busy")
        answered(upstream, "two", owner=b"busy")
        tasks: list[asyncio.Task[Place]] = []
        for name, owner in (("three", b"busy"), ("four", b"idle")):
            tasks.append(asyncio.create_task(upstream.wait(wanted(name, owner=owner), 10)))
            await asyncio.sleep(0)
            clock.now += 1
        clock.now += PAUSE_S - 2
        answered(upstream, "one", owner=b"busy")
        clock.now += 2
        answered(upstream, "one", owner=b"busy")
        await asyncio.sleep(0)
        assert [task.done() for task in tasks] == [False, True]
        upstream.release(tasks[1].result())
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    in_a_loop(line())


async def served(upstream: Upstream, asked: dict[str, Wanted], after_s: float = 0, limit_s: float = 10) -> list[str]:
    """Who gets the only place, one after the other, when all come while it is taken; the last one comes `after_s` later than the others."""
    busy = upstream.take(replace(next(iter(asked.values())), turn=Turn()))
    assert busy is not None
    got: list[str] = []

    async def ask(name: str) -> None:
        place = await upstream.wait(asked[name], limit_s)
        got.append(name)
        upstream.worked(place)
        upstream.release(place)

    *first, last = asked
    tasks = [asyncio.create_task(ask(name)) for name in first]
    await asyncio.sleep(after_s)
    tasks.append(asyncio.create_task(ask(last)))
    await asyncio.sleep(0)
    upstream.release(busy)
    await asyncio.gather(*tasks)
    return got


@pytest.mark.parametrize("slots", [0, 1])
def test_requests_of_the_highest_priority_come_first(clock: Clock, slots: int) -> None:
    """Where nobody knows the memory, and in the line of the server that holds the conversations."""
    upstream, route = fleet(clock, places=1), ROUTE.model_copy(update={"slots": slots, "cached_tokens": 100_000})
    asked = {name: wanted(name, route=route, priority=each) for name, each in (("low", -1), ("a", 0), ("b", 0), ("high", 10))}
    for name in asked:
        clock.now += 1
        answered(upstream, name, route=route)

    async def line() -> None:
        assert await served(upstream, asked) == ["high", "a", "b", "low"]

    in_a_loop(line())


def test_after_half_of_its_time_a_request_waits_for_none_of_a_higher_priority_that_came_later(clock: Clock) -> None:
    async def line() -> None:
        route = ROUTE.model_copy(update={"slots": 0})
        asked = {"low": wanted("low", route=route, priority=-10), "high": wanted("high", route=route, priority=10)}
        assert await served(fleet(clock, places=1), asked, limit_s=2) == ["high", "low"]
        assert await served(fleet(clock, places=1), asked, after_s=1.1, limit_s=2) == ["low", "high"]

    in_a_loop(line())


def test_room_goes_to_who_is_overdue_then_to_the_highest_priority(clock: Clock) -> None:
    async def line() -> None:
        upstream = fleet(clock)
        at_work = [upstream.take(wanted(name, owner=b"busy")) for name in ("one", "two")]
        for place in at_work:
            assert place is not None
            upstream.worked(place)
        got: list[str] = []
        tasks: list[asyncio.Task[None]] = []

        async def ask(name: str, owner: bytes, priority: int) -> None:
            upstream.worked(await upstream.wait(wanted(name, owner=owner, priority=priority), 3600))
            got.append(name)

        async def comes(name: str, owner: bytes, priority: int) -> None:
            tasks.append(asyncio.create_task(ask(name, owner, priority)))
            await asyncio.sleep(0)

        await comes("patient", b"patient", -10)
        for _ in range(2):
            clock.now += SLICE_S / 2
            upstream.admit()
        await comes("low", b"idle", 0)
        await comes("high", b"busy", 1)
        assert not got
        for place in at_work:
            assert place is not None
            upstream.release(place)
        clock.now += PAUSE_S + 1
        upstream.admit()
        await asyncio.sleep(0)
        assert got == ["patient", "high"], "of the same age and with a key that holds nothing, the third would be before the second"
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    in_a_loop(line())


def test_after_its_time_one_without_room_is_turned_down_and_keeps_its_age(clock: Clock) -> None:
    async def line() -> None:
        upstream = fleet(clock)
        answered(upstream, "one")
        answered(upstream, "two")
        with pytest.raises(TimeoutError):
            await upstream.wait(wanted("three"), 0.05)
        clock.now += 5
        later = asyncio.create_task(upstream.wait(wanted("four"), 10))
        await asyncio.sleep(0)
        clock.now += 5
        again = asyncio.create_task(upstream.wait(wanted("three"), 10))
        await asyncio.sleep(0)
        clock.now += PAUSE_S - 9
        answered(upstream, "two")
        clock.now += 10
        answered(upstream, "two")
        await asyncio.sleep(0)
        assert (again.done(), later.done()) == (True, False)
        later.cancel()
        upstream.release(again.result())
        await asyncio.gather(later, return_exceptions=True)

    in_a_loop(line())


def test_nobody_waits_for_ever(clock: Clock) -> None:
    """Conversations that never rest lose their room to one that has waited, once they have had it for as long."""

    async def line() -> None:
        upstream = fleet(clock)
        answered(upstream, "one")
        answered(upstream, "two")
        waiting = asyncio.create_task(upstream.wait(wanted("three"), 3600))
        for _ in range(int(SLICE_S) // 10):
            await asyncio.sleep(0)
            assert not waiting.done()
            assert {answered(upstream, name).reason for name in ("one", "two")} == {"bound"}
            clock.now += 10
        answered(upstream, "one")
        await asyncio.sleep(0)
        third = waiting.result()
        upstream.worked(third)
        assert [upstream.take(wanted(name)) is None for name in ("one", "two")].count(True) == 1
        upstream.release(third)

    in_a_loop(line())


def test_a_turn_whose_server_is_gone_finds_room_elsewhere(clock: Clock) -> None:
    upstream = fleet(clock, servers=2)
    homes = {name: answered(upstream, name).address.host for name in ("one", "two", "three")}
    del upstream.addresses["h0"]
    lost = [name for name, host in homes.items() if host == "h0"]
    assert lost
    moved = upstream.take(wanted(lost[0]))
    if len(lost) == 1:
        assert moved is None, "the other one holds two"
    else:
        assert moved is not None
        assert (moved.address.host, moved.reason) == ("h1", "lost")
