"""How API servers divide what they share, by the words that they heard of each other."""

import dataclasses
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.bindings import Bindings
from api_server.errors import ApiError
from api_server.keys import Grant, Key
from api_server.limits import Limits
from api_server.peers import ALIVE_S, TURN_S, Busy, Peers, Talk, Told, Untold, Word
from api_server.room import Room
from api_server.sessions import Said, Sessions, Turn

URL = "http://ollama:11434"


@dataclasses.dataclass
class Clock:
    """A clock that tests set."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def word(name: bytes, hosts: Mapping[str, Busy] | None = None, *, draining: bool = False, **at_once: int) -> Word:
    return Word(name, draining, at_once, {}, {URL: dict(hosts or {})}, {})


def heard(*words: Word, own: bytes = b"b", expected: int = 1, clock: Clock | None = None) -> Peers:
    peers = Peers(own, expected, clock or Clock())
    for each in words:
        peers.hear(each, 0.0)
    peers.settled()
    return peers


def test_alone_all_places_are_ours() -> None:
    assert heard().parts(URL, ["h"], 4, 0) == {"h": 4}


def test_what_nobody_wants_is_not_kept_for_them() -> None:
    assert heard(word(b"a")).parts(URL, ["h"], 4, 0) == {"h": 4}
    assert heard(word(b"a", {"h": Busy(1)})).parts(URL, ["h"], 4, 0) == {"h": 3}


def test_who_waits_gets_its_share_and_who_has_more_keeps_it_until_it_ends() -> None:
    assert heard(word(b"a", {"h": Busy(1, wanted=9)})).parts(URL, ["h"], 4, 0) == {"h": 2}
    assert heard(word(b"a", {"h": Busy(4)})).parts(URL, ["h"], 4, 0) == {"h": 0}


def test_one_that_drains_keeps_its_requests_and_gets_no_share() -> None:
    peers = heard(word(b"a", {"h": Busy(1, wanted=9)}, draining=True))
    assert (peers.count, peers.parts(URL, ["h"], 4, 0)) == (1, {"h": 3})


def test_a_place_that_cannot_be_divided_goes_round() -> None:
    peers = heard(word(b"a", {"h": Busy(0, wanted=9)}))
    assert {peers.parts(URL, ["h"], 1, second)["h"] for second in range(2 * TURN_S)} == {0, 1}


@given(
    names=st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=6, unique=True),
    places=st.integers(1, 9),
    second=st.integers(0, 10**6),
    hosts=st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3, unique=True),
)
def test_when_all_want_all_the_parts_of_all_are_the_places(names: list[bytes], places: int, second: int, hosts: list[str]) -> None:
    wants = [word(name, {host: Busy(0, wanted=99) for host in hosts}) for name in names]
    parts = [heard(*wants, own=name).parts(URL, hosts, places, second) for name in names]
    for host in hosts:
        assert sum(part[host] for part in parts) == places
        assert max(part[host] for part in parts) - min(part[host] for part in parts) <= 1


def test_one_that_is_silent_is_gone_and_without_a_settlement_each_keeps_to_its_share() -> None:
    clock = Clock()
    peers = heard(word(b"a", {"h": Busy(3, load=50)}, alice=2), clock=clock)
    assert (peers.agree, peers.count, peers.share(5), peers.at_once("alice"), peers.load(URL, "h")) == (True, 2, 5, 2, 50)
    clock.now += ALIVE_S + 0.1
    # Nobody was heard: of the two that there were, each has its half.
    assert (peers.agree, peers.count, peers.share(5), peers.at_once("alice"), peers.load(URL, "h")) == (False, 2, 3, 0, 0)
    assert peers.parts(URL, ["h"], 5, 0) == {"h": 3}
    peers.settled()
    assert (peers.agree, peers.count, peers.share(5)) == (True, 1, 5)


def test_what_was_said_long_ago_brings_nobody_back() -> None:
    peers = Peers(b"b", 3, Clock())
    assert (peers.count, peers.share(9)) == (3, 3)
    peers.hear(word(b"a"), 60.0)
    peers.settled()
    assert peers.count == 1


def test_own_words_are_none_of_a_peer() -> None:
    assert heard(word(b"b", {"h": Busy(4)})).parts(URL, ["h"], 4, 0) == {"h": 4}


@pytest.mark.parametrize(
    "data",
    [
        [b"a", False, {}, {}, {URL: {"h": [-1, 0, 0]}}, {}],
        [b"a", False, {"k": -5}, {}, {}, {}],
        [b"a", False, {}, {"k": [-5, 0]}, {}, {}],
        [b"a" * 65, False, {}, {}, {}, {}],
        [b"a", "no", {}, {}, {}, {}],
        [b"a", False, {}, {}, {}, {"m": [[[b"", b"n" * 65, "h", 1, b"o", 1]], [], {}]}],
        [b"a", False, {}, {}, {}, {"m": [[[b"", b"n", "h", 2**60, b"o", 1]], [], {}]}],
        {},
        "word",
        [],
    ],
)
def test_a_word_that_is_none_is_refused(data: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(data), type=Word)


def limits(peers: Peers, **fields: int) -> tuple[Limits, Key]:
    return Limits(100, peers), Key("alice", Grant.model_validate({"hash": 64 * "0", **fields}))


def admitted(of: Limits, key: Key, times: int) -> int:
    """How many of so many requests that stay in work are let in."""
    count = 0
    for _ in range(times):
        try:
            of.admitted(key).__enter__()
        except ApiError as error:
            assert error.status == 429
        else:
            count += 1
    return count


def test_what_a_key_used_elsewhere_counts_here() -> None:
    every, key = limits(heard(word(b"a")), requestsPerMinute=10)
    every.hear({"alice": (7, 0)}, 0.0)
    assert admitted(every, key, 9) == 3
    assert every.untold() == {"alice": (3, 0)}
    every.told({"alice": (2, 0)})
    assert every.untold() == {"alice": (1, 0)}


def test_what_was_used_elsewhere_over_a_minute_ago_is_over() -> None:
    every, key = limits(heard(word(b"a")), requestsPerMinute=10)
    every.hear({"alice": (7, 0)}, 59.0)
    every.hear({"alice": (2, 0)}, 61.0)
    assert admitted(every, key, 9) in (3, 9), "the second of a minute ago may have passed meanwhile"


def test_tokens_and_requests_at_once_count_together() -> None:
    every, key = limits(heard(word(b"a", alice=3)), concurrency=5)
    assert admitted(every, key, 9) == 2
    assert every.at_once() == {"alice": 2}
    tokens, key = limits(heard(word(b"a")), tokensPerMinute=100)
    tokens.hear({"alice": (0, 100)}, 0.0)
    assert admitted(tokens, key, 1) == 0


def test_without_word_of_the_others_a_key_has_its_share_here() -> None:
    alone = Peers(b"b", 3, Clock())
    assert admitted(*limits(alone, requestsPerMinute=10), 20) == 4
    assert admitted(*limits(alone, concurrency=2), 20) == 1


def test_strangers_names_are_not_remembered_without_bound() -> None:
    every, _ = limits(heard())
    for number in range(20_000):
        every.hear({f"key-{number}": (1, 1)}, 0.0)
    assert len(every.untold()) == 0
    assert len(every._used) == 10_000  # pyright: ignore[reportPrivateUsage]


ROOM = Room(slots=2, size=0)


def said(name: bytes, host: str = "h", before: bytes = b"", size: int = 50_000) -> Talk:
    return Talk([Told(before, name, host, size, b"alice", 9)], [], {})


def test_a_conversation_is_where_another_one_put_it_and_takes_room_there() -> None:
    mine = Bindings()
    mine.hear(said(b"one"), ROOM, 0.0)
    found = mine.find(Turn((b"one",), b"two", 60_000))
    assert found is not None
    assert (found.host, found.size, found.tokens, found.owner) == ("h", 50_000, 9, b"alice")
    mine.hear(said(b"two", "i", before=b"one", size=60_000), ROOM, 0.0)
    assert (len(mine), mine.held) == (1, {"i": 60_000})
    mine.hear(said(b"three", "i"), ROOM, 0.0)
    assert not mine.has_room("i", 50_000, ROOM)
    assert mine.has_room("h", 50_000, ROOM)


def test_what_is_on_its_way_from_elsewhere_takes_room_too() -> None:
    mine = Bindings()
    assert mine.has_room("h", 50_000, ROOM)
    mine.coming.elsewhere = {"h": (2, 100_000)}
    assert not mine.has_room("h", 50_000, ROOM)


def test_a_long_turn_elsewhere_is_no_pause() -> None:
    clock = Clock()
    mine = Bindings(clock=clock)
    for name in (b"one", b"two"):
        mine.hear(said(name), ROOM, 0.0)
    clock.now += 100
    assert mine.has_room("h", 50_000, ROOM), "both have paused"
    mine.hear(Talk([], [b"one", b"two", b"unknown"], {}), ROOM, 0.0)
    assert not mine.has_room("h", 50_000, ROOM)


def test_who_comes_later_hears_what_is_old_as_old() -> None:
    clock = Clock()
    mine = Bindings(clock=clock)
    mine.hear(said(b"one"), ROOM, 1700.0)
    mine.hear(said(b"two"), ROOM, 10.0)
    clock.now += 200
    assert mine.find(Turn((b"one",), b"x", 1)) is None
    assert mine.find(Turn((b"two",), b"x", 1)) is not None


def test_one_that_is_told_everything_knows_what_the_other_one_knows() -> None:
    here, there = Bindings(), Bindings()
    names = [f"{number}".encode() for number in range(50)]
    told: list[Told] = []
    for number, name in enumerate(names):
        turn = Turn((name,), name, 10_000 + number, owner=b"alice")
        binding = here.bind(turn, f"h{number % 3}", None, Room(100, 0))
        assert binding is not None
        told.append(Told(b"", name, binding.host, binding.size, binding.owner, binding.tokens))
    working = here.find(Turn((names[0],)))
    here.works(working, 1)
    talk = here.talk(told)
    assert talk.at_work == [names[0]]
    there.hear(msgspec.msgpack.decode(msgspec.msgpack.encode(talk), type=Talk), Room(100, 0), 0.0)
    assert (there.held, there.owned, len(there)) == (here.held, here.owned, len(here))
    here.works(working, -1)
    assert here.talk([]).at_work == []


def test_a_conversation_is_told_once_however_many_turns_it_had() -> None:
    def told(before: bytes, name: bytes, tokens: int = 0) -> Told:
        return Told(before, name, "h1", 10_000, b"alice", tokens)

    untold = Untold(2)
    for each in (told(b"", b"a1"), told(b"a1", b"a1", 7), told(b"known", b"b1"), told(b"a1", b"a2"), told(b"b1", b"b2", 9)):
        untold.add(each)
    assert untold.turns() == [told(b"", b"a2"), told(b"known", b"b2", 9)]
    untold.add(told(b"", b"c1"))
    assert [each.name for each in untold.turns()] == [b"b2", b"c1"], "the newest"


def test_with_the_same_secret_a_conversation_has_the_same_name_everywhere() -> None:
    def named(secret: bytes) -> bytes:
        body = {"messages": [{"role": "user", "content": "?"}]}
        return Sessions((), secret).turn(b"alice", Said(), "m", body, body, 99).own

    assert named(b"one") == named(b"one") != named(b"two")
    assert named(b"") != named(b"")


def test_who_waits_for_an_agent_at_work_elsewhere_keeps_its_room() -> None:
    clock = Clock()
    mine = Bindings(clock=clock)
    mine.hear(said(b"parent"), ROOM, 0.0)
    mine.hear(Talk([Told(b"", b"child", "i", 50_000, b"alice", 9, b"parent")], [], {}), ROOM, 0.0)
    mine.hear(said(b"other"), ROOM, 0.0)
    clock.now += 100
    mine.hear(said(b"third"), Room(slots=3, size=0), 0.0)
    mine.hear(Talk([], [b"child"], {}), ROOM, 0.0)
    assert mine.has_room("h", 50_000, Room(slots=3, size=0)), "the other one is silent"
    assert not mine.has_room("h", 50_000, ROOM), "and it alone"


def test_an_api_server_of_before_says_nothing_of_parents() -> None:
    told = Told(b"", b"one", "h", 50_000, b"alice", 9)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(msgspec.msgpack.decode(msgspec.msgpack.encode(told))[:6]), type=Told) == told
