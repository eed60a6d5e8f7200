"""Which conversation a request belongs to, which server holds it, and when it moves."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from multidict import CIMultiDict

from api_server.binding import Binding
from api_server.bindings import SMALL, Bindings
from api_server.density import Density
from api_server.pauses import PAUSE_S
from api_server.picking import ANSWER, SPREAD, choose
from api_server.room import Room
from api_server.sessions import HEADERS, Said, Sessions, Turn
from api_server.size import has_media, without_media

OWNER, OTHER = b"1" * 32, b"2" * 32
SYSTEM, ASK = {"role": "system", "content": "You are an agent."}, {"role": "user", "content": "Mend it."}
CALL: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "ls", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "README.md"}


@pytest.fixture(scope="module")
def sessions() -> Sessions:
    return Sessions(["x-team-session"])


def turn(sessions: Sessions, body: dict[str, Any], said: str = "", owner: bytes = OWNER, model: str = "a") -> Turn:
    return sessions.turn(owner, Said(said), model, body, body, 100)


def chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


class TestSessions:
    @pytest.mark.parametrize("name", [*HEADERS, "x-team-session"])
    def test_the_id_of_every_known_header_is_the_conversation(self, sessions: Sessions, name: str) -> None:
        assert sessions.said(CIMultiDict({name.title(): "abc"})) == Said("abc")
        first = turn(sessions, chat(SYSTEM, ASK), "abc")
        assert first.known == (first.own,)
        assert turn(sessions, chat(SYSTEM, ASK, CALL, RESULT), "abc").own == first.own

    def test_the_setting_comes_before_what_is_known(self, sessions: Sessions) -> None:
        assert sessions.said(CIMultiDict([("x-session-id", "1"), ("x-team-session", "2")])).id == "2"
        assert sessions.said(CIMultiDict([("x-session-id", ""), ("session-id", "3"), ("x-client-request-id", "4")])).id == "3"

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (
                {"x-session-id": "p", "x-session-affinity": "p"},
                {"x-session-id": "c", "x-session-affinity": "c", "x-parent-session-id": "p"},
            ),
            ({"session-id": "p", "thread-id": "p"}, {"session-id": "p", "thread-id": "c", "x-codex-parent-thread-id": "p"}),
            ({"x-claude-code-session-id": "p"}, {"x-claude-code-session-id": "p", "x-claude-code-agent-id": "c"}),
            (
                {"x-claude-code-session-id": "p", "x-claude-code-agent-id": "c"},
                {"x-claude-code-session-id": "p", "x-claude-code-agent-id": "d", "x-claude-code-parent-agent-id": "c"},
            ),
        ],
        ids=["opencode", "Codex", "Claude Code", "an agent of an agent of Claude Code"],
    )
    def test_an_agent_that_another_one_started_has_a_conversation_of_its_own(
        self, sessions: Sessions, first: dict[str, str], second: dict[str, str]
    ) -> None:
        parent, child = (sessions.turn(OWNER, sessions.said(CIMultiDict(sent)), "a", {}, {}, 100) for sent in (first, second))
        assert parent.own != child.own
        assert parent.spot != child.spot
        assert child.parent == parent.own
        assert sessions.turn(OTHER, sessions.said(CIMultiDict(second)), "a", {}, {}, 100).parent != parent.own, "of this key alone"

    def test_nobody_waits_for_itself(self, sessions: Sessions) -> None:
        assert sessions.turn(OWNER, Said("abc", "abc"), "a", {}, {}, 100).parent == b""

    @pytest.mark.parametrize("fields", [{"prompt_cache_key": "abc"}, {"metadata": {"session_id": "abc"}}])
    def test_an_id_in_the_body_counts_too(self, sessions: Sessions, fields: dict[str, Any]) -> None:
        assert turn(sessions, chat(ASK, **fields)).own == turn(sessions, chat(SYSTEM), "abc").own

    @pytest.mark.parametrize(
        "fields", [{"prompt_cache_key": 3}, {"metadata": "abc"}, {"metadata": {"session_id": ["abc"]}}, {"metadata": None}]
    )
    def test_what_is_no_id_is_passed_over(self, sessions: Sessions, fields: dict[str, Any]) -> None:
        assert turn(sessions, chat(ASK, **fields)).own == turn(sessions, chat(ASK)).own

    def test_another_key_or_model_has_other_names(self, sessions: Sessions) -> None:
        for body, said in ((chat(ASK), "abc"), (chat(ASK), "")):
            mine = turn(sessions, body, said)
            for other in (
                turn(sessions, body, said, owner=OTHER),
                turn(sessions, body, said, model="b"),
                sessions.turn(OWNER, Said(), "aabc", {}, body, 1),
            ):
                assert not {*mine.known, mine.own} & {*other.known, other.own}
        assert not set(Sessions().turn(OWNER, Said("abc"), "a", {}, {}, 1).known) & set(turn(sessions, {}, "abc").known), (
            "nor another process"
        )

    def test_no_name_of_a_key_and_a_model_is_that_of_another_pair(self, sessions: Sessions) -> None:
        for said in ("abc", ""):
            first, second = (turn(sessions, chat(ASK), said, owner, model) for owner, model in ((b"a", "bc"), (b"ab", "c")))
            assert (first.own == second.own, first.spot == second.spot) == (False, False)

    @pytest.mark.parametrize("said", ["abc", ""])
    def test_every_gateway_puts_a_conversation_on_the_same_server(self, sessions: Sessions, said: str) -> None:
        fleet, placed = servers(0, 0, 0, 0), set[str]()
        for number in range(40):
            begins = chat(SYSTEM, {**ASK, "content": str(number)})
            bodies = (begins, chat(*begins["messages"], CALL, RESULT))
            ids = f"{said}{number}" if said else ""
            found = {choose(turn(each, body, ids), None, fleet, NOTHING).server.host for each in (sessions, Sessions()) for body in bodies}
            assert len(found) == 1, "in another process, and in the middle of a conversation too"
            placed |= found
        assert len(placed) == 4

    def test_the_next_turn_knows_the_one_before_by_its_messages(self, sessions: Sessions) -> None:
        first = turn(sessions, chat(SYSTEM, ASK, tools=[1]))
        second = turn(sessions, chat(SYSTEM, ASK, CALL, RESULT, tools=[1]))
        assert (len(first.known), len(second.known)) == (2, 4)
        assert first.known[0] == first.own
        assert second.known[0] == second.own
        assert second.known[2] == first.own, "longest first"
        for other in (
            chat(SYSTEM, ASK),
            chat(SYSTEM, ASK, tools=[2]),
            chat(ASK, SYSTEM, tools=[1]),
            chat({**ASK, "content": "Go."}, tools=[1]),
        ):
            assert turn(sessions, other).own not in second.known

    def test_the_items_of_a_response_are_messages_too(self, sessions: Sessions) -> None:
        first = turn(sessions, {"input": [ASK], "instructions": "Be an agent."})
        assert first.own in turn(sessions, {"input": [ASK, CALL, RESULT], "instructions": "Be an agent."}).known
        assert first.own not in turn(sessions, {"input": [ASK, CALL, RESULT]}).known

    def test_a_prompt_is_known_by_its_beginning(self, sessions: Sessions) -> None:
        assert (
            turn(sessions, {"prompt": "x" * 2000}).own == turn(sessions, {"prompt": "x" * 3000}).own != turn(sessions, {"prompt": "y"}).own
        )
        for body in ({"input": ""}, {"prompt": ""}, {"prompt": [1, 2]}, chat()):
            assert turn(sessions, body) == Turn(size=100)

    @given(said=st.text(max_size=10_000), content=st.text())
    def test_ids_of_any_text_have_names_of_one_length(self, sessions: Sessions, said: str, content: str) -> None:
        found = turn(sessions, chat({"role": "user", "content": content}), said)
        assert {len(name) for name in (*found.known, found.own)} == {16}


def named(text: str, size: int = 1000, *before: str) -> Turn:
    names = tuple(each.encode().ljust(16) for each in (text, *before))
    return Turn(names, names[0], size)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class TestBindings:
    def test_the_longest_known_part_is_found_and_then_known_by_its_new_name(self) -> None:
        table = Bindings()
        table.bind(named("abc"), "h0", None)
        found = table.find(named("abcde", 1500, "abcd", "abc", "ab"))
        assert found is not None
        assert (found.name, found.host) == (named("abc").own, "h0")
        assert table.bind(named("abcde", 1500, "abcd", "abc", "ab"), "h1", found) is found
        assert table.find(named("abc")) is None
        assert (len(table), table.held.get("h0", 0), table.held.get("h1", 0)) == (1, 0, 1500)

    def test_a_turn_that_is_no_part_of_a_conversation_is_not_kept(self) -> None:
        table = Bindings()
        assert table.bind(Turn(size=10), "h0", None) is None
        assert (len(table), table.held.get("h0", 0)) == (0, 0)

    def test_the_one_that_was_silent_for_longest_goes_first(self) -> None:
        table = Bindings(most=3)
        for name in ("a", "b", "c", "a", "d"):
            table.bind(named(name), name, None)
        assert [table.find(named(name)) is not None for name in ("a", "b", "c", "d")] == [True, False, True, True]
        assert (len(table), table.held.get("b", 0)) == (3, 0)

    def test_a_conversation_ends_with_its_lease(self) -> None:
        clock = Clock()
        table = Bindings(lease_s=60, clock=clock)
        table.bind(named("a"), "h0", None)
        clock.now = 40
        table.bind(named("b"), "h0", None)
        clock.now = 61
        assert (table.find(named("a")), len(table), table.held.get("h0", 0)) == (None, 1, 1000)
        assert table.find(named("b")) is not None

    @given(
        st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["h0", "h1"]), st.integers(0, 5000), st.floats(0, 40)), max_size=60)
    )
    def test_what_a_server_holds_is_the_sum_of_its_conversations(self, turns: list[tuple[str, str, int, float]]) -> None:
        clock = Clock()
        table, kept = Bindings(most=4, lease_s=100, clock=clock), dict[str, tuple[str, int]]()
        for name, host, size, pause in turns:
            clock.now += pause
            found = table.find(named(name, size))
            table.bind(named(name, size), host, found)
            kept[name] = (host, size)
            alive = {each for each in kept if (there := table.find(named(each))) and (there.host, there.size) == kept[each]}
            assert name in alive
            assert len(alive) == len(table) <= 4
            for each in ("h0", "h1"):
                assert table.held.get(each, 0) == sum(kept[one][1] for one in alive if kept[one][0] == each)
                assert table.bound.get(each, 0) == sum(kept[one][0] == each for one in alive)


ROOM = Room(0, 100_000)


class TestRoom:
    """A server that has room for 100,000 bytes, and no slots beside it."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def table(self, clock: Clock) -> Bindings:
        return Bindings(clock=clock)

    def has_room(self, table: Bindings, size: int) -> bool:
        return table.has_room("h0", size, ROOM)

    def test_what_a_server_holds_and_what_it_was_sent_take_room(self, table: Bindings) -> None:
        table.bind(named("a", 60000), "h0", None)
        assert (self.has_room(table, 40000), self.has_room(table, 40100)) == (True, False)
        table.coming.expect("h0", 0, 10_000)
        assert (self.has_room(table, 30000), self.has_room(table, 30100)) == (True, False)
        table.coming.expect("h0", 0, -10_000)
        assert self.has_room(table, 40000)
        assert table.has_room("h1", 100_000, ROOM), "another server has its own"

    def test_a_conversation_that_is_silent_makes_room_and_one_at_work_does_not(self, table: Bindings, clock: Clock) -> None:
        silent, works = (table.bind(named(name, 50000), "h0", None) for name in "ab")
        assert silent is not None
        assert works is not None
        table.works(works, 1)
        clock.now = PAUSE_S + 1
        assert (self.has_room(table, 50000), self.has_room(table, 50100)) == (True, False)
        table.works(silent, 1)
        assert not self.has_room(table, 100)
        table.works(silent, -1)
        assert not self.has_room(table, 100), "its turn has just ended"

    def test_one_that_is_larger_than_the_room_gets_an_empty_server(self, table: Bindings, clock: Clock) -> None:
        assert self.has_room(table, 1_000_000)
        table.bind(named("a", 10_000), "h0", None)
        assert not self.has_room(table, 1_000_000)
        clock.now = PAUSE_S + 1
        assert self.has_room(table, 1_000_000)

    def test_the_one_that_was_silent_for_longest_loses_its_room_and_keeps_its_age(self, table: Bindings, clock: Clock) -> None:
        first = table.bind(named("a", 50000), "h0", None, ROOM)
        clock.now = 1
        second = table.bind(named("b", 40000), "h0", None, ROOM)
        assert first is not None
        assert second is not None
        first.tokens = 100
        table.works(second, 1)
        clock.now = 2
        table.bind(named("a", 55000), "h0", first, ROOM)
        third = table.bind(named("c", 50000), "h0", None, ROOM)
        assert third is not None
        assert [each.host for each in (first, second, third)] == ["", "h0", "h0"]
        assert (table.held["h0"], table.find(named("a")), first.began) == (90_000, first, 0)
        choice = choose(named("a", 60000), first, servers(0, 0), table.held)
        assert (choice.reason, choice.unread) == ("paused", 60_000)
        assert table.bind(named("a", 60000), "h1", first, ROOM) is first
        assert table.held == {"h0": 90_000, "h1": 60_000}

    def test_one_that_its_server_forgot_does_not_stand_in_its_own_way(self, table: Bindings) -> None:
        """As when Ollama unloads a model: nobody told the table."""
        known = table.bind(named("a", 80000), "h0", None)
        assert (table.has_room("h0", 90_000, ROOM, known), table.has_room("h0", 90_000, ROOM)) == (True, False)

    def test_one_that_waits_for_room_is_known_from_its_first_try_on(self, table: Bindings, clock: Clock) -> None:
        met = table.meet(named("a"))
        clock.now = 30
        again = table.meet(named("abc", 1000, "ab", "a"))
        assert met is again
        assert met is not None
        assert (met.began, met.host, choose(named("a"), met, servers(0), table.held).reason) == (0, "", "new")
        assert table.meet(Turn(size=10)) is None

    def test_owners_hold_what_their_conversations_take(self, table: Bindings) -> None:
        for owner, names in ((b"1", "ab"), (b"2", "c")):
            for name in names:
                table.bind(replace(named(name, 30000), owner=owner), "h0", None, Room(0, 70_000))
        assert table.owned == {b"1": 30_000, b"2": 30_000}, "one had to make room"

    @given(
        st.lists(
            st.tuples(
                st.sampled_from("abcdef"), st.sampled_from(["h0", "h1"]), st.integers(SMALL + 1, 90_000), st.booleans(), st.floats(0, 100)
            ),
            max_size=60,
        )
    )
    def test_the_room_of_a_server_is_never_exceeded_but_by_what_is_at_work(self, turns: list[tuple[str, str, int, bool, float]]) -> None:
        clock, at_work = Clock(), list[Binding]()
        table = Bindings(most=4, lease_s=1000, clock=clock)
        for name, host, size, ends, pause in turns:
            clock.now += pause
            part = named(name, size)
            bound = table.bind(part, host, table.find(part), ROOM)
            assert bound is not None
            assert table.held[host] <= max(100_000, sum(each.size for each in {*at_work, bound} if each.host == host))
            table.works(bound, 1)
            at_work.append(bound)
            if ends:
                table.works(at_work.pop(0), -1)
            assert sum(table.owned.values()) == sum(table.held.values())

    def test_a_slot_keeps_one_however_long_it_is(self, table: Bindings) -> None:
        room = Room(2, 50_000)
        table.bind(named("a", 500_000), "h0", None, room)
        assert table.has_room("h0", 900_000, room)
        table.bind(named("b", 50_000), "h0", None, room)
        assert not table.has_room("h0", 50_000, room), "one of the three has to be in the cache, and may be a long one"
        assert table.has_room("h1", 50_000, room)

    def test_what_is_small_takes_none(self, table: Bindings) -> None:
        for number in range(100):
            table.bind(named(str(number), SMALL), "h0", None, ROOM)
        assert self.has_room(table, 100_000)
        assert table.held["h0"] == 100 * SMALL


@dataclass
class Server:
    host: str
    load: int = 0


def test_tokens_are_learned_in_bytes_between_bounds() -> None:
    density = Density()
    assert density.bytes_per_token == 3
    for _ in range(1000):
        density.learn(40_000, 10_000)
    assert density.bytes_per_token == pytest.approx(4, abs=0.01)
    for _ in range(1000):
        density.learn(10**9, 1)
    assert density.bytes_per_token == 8


def servers(*loads: int) -> list[Server]:
    return [Server(f"h{number}", load) for number, load in enumerate(loads)]


NOTHING: dict[str, int] = {}


class TestPicking:
    def bound(self, size: int, host: str = "h0") -> Binding:
        return Binding(host, size, seen=0.0)

    def test_a_turn_stays_until_reading_all_of_it_elsewhere_is_sooner(self) -> None:
        again = named("a", 100_000)
        stays = choose(again, self.bound(90_000), servers(90_000, 0), NOTHING)
        assert (stays.server.host, stays.reason, stays.unread) == ("h0", "bound", 10_000)
        moves = choose(again, self.bound(90_000), servers(90_001, 0), NOTHING)
        assert (moves.server.host, moves.reason, moves.unread) == ("h1", "spilled", 100_000)

    def test_a_short_conversation_moves_sooner_than_a_long_one(self) -> None:
        busy = servers(2 * ANSWER, 0)
        assert choose(named("a", 4000), self.bound(4000), busy, NOTHING).reason == "spilled"
        assert choose(named("a", 400_000), self.bound(400_000), busy, NOTHING).reason == "bound"

    def test_after_a_compaction_only_what_is_left_can_be_reused(self) -> None:
        choice = choose(named("a", 1000), self.bound(90_000), servers(0, 0), NOTHING)
        assert (choice.reason, choice.unread) == ("bound", 0)
        assert choose(named("a", 1000), self.bound(90_000), servers(1001, 0), NOTHING).reason == "spilled"

    def test_a_server_that_is_gone_loses_its_conversations_to_all_others(self) -> None:
        found = [choose(named(f"c{number}"), self.bound(1000, "gone"), servers(0, 0, 0, 0), NOTHING) for number in range(400)]
        assert {choice.reason for choice in found} == {"lost"}
        counts = Counter(choice.server.host for choice in found)
        assert min(counts.values()) > 60

    def test_the_same_conversation_gets_the_same_server_from_every_gateway(self) -> None:
        for number in range(100):
            fleet = servers(0, 0, 0, 0)
            assert len({choose(named(f"c{number}"), None, order, NOTHING).server.host for order in (fleet, fleet[::-1])}) == 1

    def test_one_server_more_moves_only_what_it_gets(self) -> None:
        for number in range(200):
            few = choose(named(f"c{number}"), None, servers(0, 0, 0), NOTHING).server.host
            assert choose(named(f"c{number}"), None, servers(0, 0, 0, 0), NOTHING).server.host in (few, "h3")

    def test_no_server_holds_many_more_conversations_than_the_mean(self) -> None:
        table, fleet = Bindings(), servers(0, 0, 0, 0, 0)
        for number in range(500):
            each = named(f"c{number}", 1000)
            table.bind(each, choose(each, None, fleet, table.held).server.host, None)
        held = [table.held.get(server.host, 0) for server in fleet]
        assert sum(held) == 500_000
        assert max(held) <= SPREAD * sum(held) / len(held) + 1000

    def test_what_is_no_conversation_goes_to_the_server_with_least_ahead(self) -> None:
        assert choose(Turn(size=10), None, servers(5, 3, 4), {"h1": 10**9}).server.host == "h1"

    @given(st.lists(st.integers(0, 10**7), min_size=1, max_size=8), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 9))
    def test_there_is_always_a_server_and_never_one_that_costs_more(self, loads: list[int], size: int, held: int, home: int) -> None:
        fleet = servers(*loads)
        choice = choose(named("a", size), self.bound(held, f"h{home}"), fleet, NOTHING)
        costs = [server.load + size - (min(held, size) if server.host == f"h{home}" else 0) for server in fleet]
        if choice.reason in ("bound", "spilled"):
            assert choice.server.load + choice.unread == min(costs)
        assert choice.reason == "lost" if home >= len(loads) else choice.reason != "new"


def test_many_sessions_take_bounded_memory() -> None:
    """100,000 distinct ids of 1 KiB, and the table holds as many as it may."""
    sessions, table = Sessions(), Bindings(most=10_000)
    for each in ids(100_000):
        part = sessions.turn(OWNER, Said(each), "a", {}, {}, 100)
        table.bind(part, "h0", None)
    assert (len(table), table.held.get("h0", 0)) == (10_000, 1_000_000)


def ids(count: int) -> Iterable[str]:
    start = os.urandom(500).hex()
    return (f"{start}{number}" for number in range(count))


class TestMedia:
    """A model sees a picture as some 1,000 tokens, however many bytes it has."""

    PICTURE = "iVBORw0KGgo" * 100_000

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/v1/chat/completions", {"content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}]}),
            ("/v1/messages", {"content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}]}),
            ("/api/chat", {"content": "?", "images": [PICTURE]}),
        ],
    )
    def test_a_picture_takes_the_room_of_its_tokens(self, path: str, message: dict[str, Any]) -> None:
        body: dict[str, Any] = {"model": "a", "messages": [{"role": "user", **message}], "max_tokens": 1}
        long = len(json.dumps(body))
        assert has_media(path, body)
        assert 4096 < without_media(long, body) < 5000
        text = chat({"role": "user", "content": "What is data:? " * 1000})
        assert without_media(20_000, text) == 20_000
