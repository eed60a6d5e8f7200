"""Agents wait for agents of their own: those keep their memory meanwhile, and the others are the next to get some."""

import asyncio

import pytest
from msgspec.structs import replace

from api_server.bindings import SMALL, Bindings
from api_server.pauses import PAUSE_S
from api_server.place import Place, Wanted
from api_server.room import Room
from tests.unit.test_admission import SIZE, Clock, answered, clock, fleet, in_a_loop, wanted

__all__ = ["clock"]
ROOM = Room(0, 100_000)


def of(name: str, parent: str) -> Wanted:
    """A turn of an agent that another one has started."""
    found = wanted(name)
    return replace(found, turn=replace(found.turn, parent=parent.encode()))


def bound(table: Bindings, name: str, parent: str = "") -> None:
    table.bind(of(name, parent).turn, "h0", table.find(wanted(name).turn), Room(100, 0))


def at_work(table: Bindings, name: str, turns: int) -> None:
    table.works(table.find(wanted(name).turn), turns)


def has_room(table: Bindings, conversations: int) -> bool:
    """For so many, all others included."""
    return table.has_room("h0", SIZE, Room(0, conversations * SIZE))


@pytest.fixture
def table(clock: Clock) -> Bindings:
    return Bindings(clock=clock)


def test_who_waits_for_its_agent_keeps_its_room_until_that_is_silent_too(table: Bindings, clock: Clock) -> None:
    bound(table, "parent")
    for _ in range(3):
        clock.now += PAUSE_S - 1
        bound(table, "child", "parent")
        at_work(table, "child", 1)
        at_work(table, "child", -1)
    assert not has_room(table, 2)
    clock.now += PAUSE_S + 1
    assert has_room(table, 1)


def test_a_long_turn_of_its_agent_keeps_it_too_and_of_the_agents_of_that(table: Bindings, clock: Clock) -> None:
    bound(table, "parent")
    bound(table, "child", "parent")
    bound(table, "grandchild", "child")
    at_work(table, "grandchild", 1)
    clock.now += 10 * PAUSE_S
    assert not has_room(table, 3)
    assert table.needing(["h0"]) == (3, 3 * SIZE)
    at_work(table, "grandchild", -1)
    clock.now += PAUSE_S + 1
    assert has_room(table, 1)


def test_agents_that_wait_for_each_other_in_a_circle_wait_for_no_longer_than_others(table: Bindings, clock: Clock) -> None:
    bound(table, "one", "two")
    bound(table, "two", "one")
    clock.now += PAUSE_S + 1
    assert has_room(table, 1)


def test_a_pause_that_went_by_with_an_agent_says_nothing_of_others(clock: Clock) -> None:
    upstream = fleet(clock)
    conversations = upstream.conversations["a"]
    for _ in range(100):
        answered(upstream, "parent")
        clock.now += 1
    for number in range(10):
        answered(upstream, "parent")
        clock.now += 30
        place = upstream.take(of(f"child {number}", "parent"))
        assert place is not None
        upstream.worked(place)
        upstream.release(place)
        clock.now += 20
    assert conversations.pauses.of(b"key").usual_s < 30


def test_an_agent_of_one_that_has_begun_comes_before_those_that_have_not(clock: Clock) -> None:
    async def line() -> None:
        upstream = fleet(clock)
        answered(upstream, "parent")
        answered(upstream, "other")
        tasks: dict[str, asyncio.Task[Place]] = {}
        for each in (wanted("new"), of("child", "parent")):
            clock.now += 1
            tasks[each.turn.own.decode()] = asyncio.create_task(upstream.wait(each, 10))
            await asyncio.sleep(0)
        clock.now += PAUSE_S - 1
        upstream.admit()
        await asyncio.sleep(0)
        assert [name for name, task in tasks.items() if task.done()] == ["child"]
        upstream.release(tasks["child"].result())
        tasks["new"].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    in_a_loop(line())


def test_a_line_that_is_full_of_new_ones_turns_down_nobody_who_goes_on(clock: Clock) -> None:
    async def line() -> None:
        upstream = fleet(clock)
        answered(upstream, "one")
        answered(upstream, "two")
        tasks = [asyncio.create_task(upstream.wait(wanted(f"new {number}"), 10)) for number in range(2)]
        await asyncio.sleep(0)
        assert [upstream.is_full_of(wanted("another"), most) for most in (2, 3)] == [True, False]
        assert not upstream.is_full_of(wanted("one"), 2)
        assert not upstream.is_full_of(of("child", "two"), 2)
        assert upstream.is_full_of(of("orphan", "unknown"), 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    in_a_loop(line())


def test_a_title_under_the_id_of_a_conversation_leaves_that_as_it_is(clock: Clock) -> None:
    upstream = fleet(clock)
    answered(upstream, "one")
    place = answered(upstream, "one")
    place.said(5000, 50)
    known = place.known
    assert known is not None
    assert (known.size, known.tokens) == (SIZE, 5050)
    title = upstream.take(wanted("one", SMALL))
    assert title is not None
    assert (title.address, title.reusable) == (place.address, 0)
    upstream.worked(title)
    title.said(40, 8)
    upstream.release(title)
    assert (known.size, known.tokens, known.host) == (SIZE, 5050, place.address.host)
    assert answered(upstream, "one").reusable == 5050
