"""Decisions of the API server that need no server."""

import asyncio
import json
import math
import socket
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from api_server import errors, fields, history, models, requests, size, translation
from api_server.address import Address
from api_server.aliases import Aliases
from api_server.place import Place, Wanted
from api_server.routing import Routing
from api_server.sessions import Turn
from api_server.settings import Route, SettingsError
from api_server.settings import Settings as ApiSettings
from api_server.upstreams import Upstream
from api_server.usage import Reader

ROUTE = Route(url="http://ollama:11434", model="m:1", engine="ollama", context_length=2048)


LISTS = [
    ("CORS_ORIGINS", "https://a.example , http://b:3000,", frozenset({"https://a.example", "http://b:3000"})),
    ("TLS_NAMES", "models.example.com,::1", ("models.example.com", "::1")),
    ("SESSION_HEADERS", "X-My-Session, x-other", ("x-my-session", "x-other")),
]


def api_settings(monkeypatch: pytest.MonkeyPatch, **env: str) -> ApiSettings:
    given = {"KEYS_FILE": "keys", "TLS_DIR": "tls", "ROUTES": '{"a": {"url": "http://a:1"}}', **env}
    for name, value in given.items():
        monkeypatch.setenv(f"API_SERVER_{name}", value)
    return ApiSettings.read()


@pytest.mark.parametrize(("name", "text", "value"), LISTS)
def test_lists_are_read(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object) -> None:
    assert getattr(api_settings(monkeypatch, **{name: text}), name.lower()) == value
    assert not getattr(api_settings(monkeypatch, **{name: ""}), name.lower())


@pytest.mark.parametrize(("name", "text"), [(name, f"{text},a b") for name, text, _ in LISTS])
def test_a_list_with_something_else_in_it_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"^API_SERVER_{name}: got .*a b', want (origins|names) .*, separated by commas; correct"):
        api_settings(monkeypatch, **{name: text})


def test_the_password_of_the_cache_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    settings = api_settings(monkeypatch, CACHE_PASSWORD_FILE=str(file))
    assert settings.cache_password == "first"
    file.write_text("second")
    assert settings.cache_password == "first"
    with pytest.raises(SettingsError, match=r"^API_SERVER_CACHE_PASSWORD_FILE: got No such file"):
        api_settings(monkeypatch, CACHE_PASSWORD_FILE=str(tmp_path / "none")).cache_password  # noqa: B018


def test_only_options_of_one_answer_reach_ollama() -> None:
    payload = {
        "model": "a",
        "messages": [],
        "keep_alive": 0,
        "shift": False,
        "options": {"num_ctx": 9, "num_gpu": 0, "temperature": 1, "stop": ["a"]},
    }
    sent = requests.cleaned("/api/chat", payload, ROUTE, "a")
    assert sent == (
        {"model": "m:1", "messages": [], "truncate": False, "options": {"temperature": 1, "stop": ["a"]}},
        ["keep_alive", "shift", "num_ctx", "num_gpu"],
    )


def test_the_newer_name_of_the_limit_is_given_to_ollama_as_the_older() -> None:
    message = {"role": "user", "content": "a"}
    payload = {"model": "a", "messages": [message], "max_completion_tokens": 5, "stream": True}
    sent, dropped = requests.cleaned("/v1/chat/completions", payload, ROUTE, "a")
    assert sent == {"model": "m:1", "messages": [message], "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    assert dropped == []
    other = Route(url="http://server:8080")
    assert requests.cleaned("/v1/chat/completions", payload, other, "a")[0]["max_completion_tokens"] == 5


@pytest.mark.parametrize("path", models.endpoints("ollama"))
@pytest.mark.parametrize(
    "name", ["Keep_Alive", "KEEP_ALIVE", "keep_alive", "Option\u017f", "Options", "Model", "Messages", "\u212aeep_alive", "\u017fhift"]
)
def test_no_field_goes_on_in_another_spelling(path: str, name: str) -> None:
    payload = {
        "model": "a",
        "messages": [{"role": "user", "content": "a", name: [1]}],
        "options": {"Num_Ctx": 1, name: 1},
        "input": "a",
        name: 0,
    }
    sent, dropped = requests.cleaned(path, payload, ROUTE, "a")
    assert name in dropped
    assert name not in json.dumps(sent, ensure_ascii=False).replace('"truncate"', "")
    assert sent["model"] == "m:1"


@pytest.mark.parametrize(
    ("url", "host"), [("http://ollama:11434", "ollama"), ("http://10.0.0.7:80", "10.0.0.7"), ("http://[FD00::7]:11434", "fd00::7")]
)
def test_a_server_has_a_name_or_an_address_of_either_family(url: str, host: str) -> None:
    upstream = Upstream(Route(url=url).url, 1)
    assert upstream.host == host
    assert Address(host, upstream.port).url == url.lower()


@pytest.mark.parametrize(
    "url",
    ["http://ollama", "http://fd00::7:11434", "http://[fd00]:1", "http://[::1]:0", "http://a:65536", "http://a..b:1", "http://[a]b:1"],
)
def test_what_is_no_server_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        Route(url=url)


def test_the_names_of_dropped_fields_are_bounded() -> None:
    assert fields.label("keep_alive") == "keep_alive"
    assert {fields.label(f"made_up_{number}") for number in range(100)} == {"other"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_choice_that_ollama_cannot_honour_is_refused_by_name(choice: object) -> None:
    payload = {"model": "a", "messages": [{"role": "user", "content": "a"}], "tools": [{"function": {"name": "f"}}]}
    with pytest.raises(errors.ApiError, match="tool_choice: got"):
        requests.cleaned("/v1/chat/completions", payload | {"tool_choice": choice}, ROUTE, "a")
    assert "tools" not in requests.cleaned("/v1/chat/completions", payload | {"tool_choice": "none"}, ROUTE, "a")[0]
    assert "tools" in requests.cleaned("/v1/chat/completions", payload | {"tool_choice": "auto"}, ROUTE, "a")[0]


@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("n", 1, 2), ("best_of", 1, 3), ("echo", False, True), ("parallel_tool_calls", True, False), ("functions", [], [{"name": "f"}]),
        ("function_call", "auto", {"name": "f"}), ("modalities", ["text"], ["text", "audio"]), ("audio", None, {"voice": "a"}), ("n", None, "x" * 9000),
    ],
)  # fmt: skip
def test_what_ollama_would_pass_over_is_refused_by_name_unless_it_changes_nothing(name: str, same: object, other: object) -> None:
    payload = {"model": "a", "messages": [{"role": "user", "content": "a"}], "tools": [{"function": {"name": "f"}}]}
    sent, dropped = requests.cleaned("/v1/chat/completions", payload | {name: same}, ROUTE, "a")
    assert name not in sent
    assert not dropped
    with pytest.raises(errors.ApiError) as caught:
        requests.cleaned("/v1/chat/completions", payload | {name: other}, ROUTE, "a")
    assert caught.value.body["error"]["param"] == name
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"model": 1}',
        b'{"model": "a"}',
        b'{"model": "a", "messages": [1], "options": 3}',
        b"[" * 100_000,
        b'{"model": "a", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"model": "a", "messages": [1], "prompt_cache_key": "\xed\xa0\x80"}',
        b'{"model": "a", "messages": [1], "tools": {}}',
        b'{"model": "a", "messages": [1], "max_tokens": 1e999}',
        b'{"model": "a", "messages": [1], "max_tokens": NaN}',
        b'{"model": "a", "messages": [1], "max_tokens": "100"}',
        b'{"model": "a", "messages": [1], "reasoning_effort": ["high"]}',
        b'{"model": "a", "model": "a", "messages": [1]}',
        b'{"model": "a", "messages": [{"role": "user", "content": "a", "content": "b"}]}',
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(errors.ApiError) as caught:
        requests.understood("/v1/chat/completions", body, Routing({"a": ROUTE}, Aliases(None, ())), lambda *_: Turn())
    assert caught.value.status == 400


def test_openais_messages_are_counted_in_ollamas_form() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    image = "data:image/png;base64,QUJD"
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": image}}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "out"},
    ]
    plain = history.normalised(messages, "reasoning")
    path, body = translation.counting_request("/v1/chat/completions", {"messages": plain, "reasoning_effort": "none"})
    assert path == "/api/chat"
    assert body["think"] is False
    assert body["messages"] == [
        {"role": "user", "content": "look"},
        {"role": "user", "images": ["QUJD"]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "out", "tool_call_id": "c1", "tool_name": "f"},
    ]


USER = {"role": "user", "content": "a"}


def call(arguments: object) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ("text", "messages[1]"),
        ({"content": "a"}, "messages[1].role"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "video"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": ["x"]}]}, "messages[1].content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": 5}]}, "messages[1].content[0].image_url"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]},
            "messages[1].content[0].image_url.url",
        ),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0]"),
    ],
)
def test_messages_without_a_meaning_are_refused_by_their_place(message: object, where: str) -> None:
    with pytest.raises(errors.ApiError) as caught:
        history.normalised([USER, message], "reasoning")
    assert str(caught.value).startswith(f"{where}: got")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "developer", "content": "s"}, USER], [{"role": "system", "content": "s"}, USER]),
        ([USER, {"role": "assistant", "content": None}], [USER, {"role": "assistant", "content": ""}]),
        ([USER, {"role": "assistant"}], [USER, {"role": "assistant", "content": ""}]),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], [{"role": "user", "content": "a\nb"}]),
        (
            [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER],
            [{"role": "system", "content": "a\n\nb"}, USER],
        ),
        ([USER, {"role": "system", "content": "s"}], [{"role": "user", "content": "a\n\ns"}]),
        (
            [USER, {"role": "assistant", "content": "b"}, {"role": "system", "content": "s"}],
            [USER, {"role": "assistant", "content": "b"}, {"role": "user", "content": "s"}],
        ),
        ([{"role": "assistant", "tool_calls": [call("")]}], [{"role": "assistant", "content": "", "tool_calls": [call("{}")]}]),
        ([{"role": "assistant", "tool_calls": [call('{"a": ')]}], [{"role": "assistant", "content": "", "tool_calls": [call("{}")]}]),
        ([{"role": "assistant", "tool_calls": [call(None)]}], [{"role": "assistant", "content": "", "tool_calls": [call("{}")]}]),
        ([{"role": "assistant", "tool_calls": [call("[1]")]}], [{"role": "assistant", "content": "", "tool_calls": [call("{}")]}]),
        ([{"role": "assistant", "tool_calls": [call({"a": 1})]}], [{"role": "assistant", "content": "", "tool_calls": [call('{"a": 1}')]}]),
        ([{"role": "assistant", "content": "a", "reasoning_content": "hm"}], [{"role": "assistant", "content": "a", "reasoning": "hm"}]),
        (
            [{"role": "tool", "tool_call_id": "c1", "name": "f", "content": [{"type": "text", "text": "a"}]}],
            [{"role": "tool", "tool_call_id": "c1", "name": "f", "content": "a"}],
        ),
        (
            [{"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "data:,"}]}],
            [
                {"role": "tool", "tool_call_id": "c1", "content": "a"},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
            ],
        ),
        ([USER | {"Content": "b", "cache_control": {}}], [USER]),
    ],
)  # fmt: skip
def test_a_replayed_history_becomes_what_servers_take(messages: list[Any], expected: list[Any]) -> None:
    assert history.normalised(messages, "reasoning") == expected
    assert history.normalised(expected, "reasoning") == expected, "a second time changes nothing"


def test_each_server_gets_thoughts_and_arguments_in_its_own_form() -> None:
    message = {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": [call('{"a": 1}')]}
    native = history.normalised([message], "thinking")[0]
    assert (native["thinking"], native["tool_calls"][0]["function"]["arguments"]) == ("hm", {"a": 1})
    assert history.normalised([message], "reasoning_content")[0]["reasoning_content"] == "hm"


def test_size_is_an_upper_bound_but_for_images() -> None:
    text = "g\u00e4nge \U0001f600"
    assert (size.most_tokens("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}) or 0) > len(text.encode())
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]}]
    assert size.most_tokens("/v1/chat/completions", {"messages": image}) is None
    assert size.most_tokens("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["QUJD"]}]}) is None
    assert size.most_tokens("/v1/embeddings", {"input": ["a", "abc"]}) == 3


class TestReader:
    USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
    TEXT = b'data: {"choices":[{"delta":{"content":"the \\"usage\\" of it"}}]}\n\n'

    @pytest.mark.parametrize("size", [1, 7, 1000])
    @pytest.mark.parametrize("drop", [False, True])
    def test_a_stream_passes_in_any_pieces(self, size: int, drop: bool) -> None:
        whole = self.TEXT + self.USAGE + b"data: [DONE]\n\n"
        reader = Reader("sse", drop_usage=drop)
        passed = b"".join(reader.feed(whole[start : start + size]) for start in range(0, len(whole), size))
        assert reader.rest() == b""
        assert passed == (self.TEXT + b"data: [DONE]\n\n" if drop else whole)
        assert (reader.prompt_tokens, reader.completion_tokens) == (7, 3)

    def test_ollamas_last_line_has_the_numbers(self) -> None:
        reader = Reader("ndjson")
        line = json.dumps({"done": True, "prompt_eval_count": 7, "eval_count": 3}).encode() + b"\n"
        assert reader.feed(b'{"done": false}\n' + line) == b'{"done": false}\n' + line
        assert (reader.prompt_tokens, reader.completion_tokens) == (7, 3)

    def test_one_document_passes_when_it_is_whole(self) -> None:
        reader = Reader("")
        parts = [b'{"usage": {"prompt_tokens": 7,', b' "completion_tokens": 3}}']
        assert [reader.feed(part) for part in parts] == [b"", b""]
        assert reader.rest() == b"".join(parts)
        assert (reader.prompt_tokens, reader.completion_tokens) == (7, 3)

    @pytest.mark.parametrize("part", [b"", b"[]", b'{"a": 1', b"<html>", b"[" * 100_000])
    def test_what_is_no_document_is_not_whole(self, part: bytes) -> None:
        reader = Reader("")
        assert reader.feed(part) == b""
        assert reader.rest() is None

    def test_a_long_document_passes_as_it_comes(self) -> None:
        reader = Reader("")
        assert reader.feed(b"x" * 3 * 2**20) == b"x" * 3 * 2**20
        assert reader.feed(b"y") == b"y"
        assert reader.rest() == b""

    @pytest.mark.parametrize(
        ("stream", "text", "is_whole"),
        [
            ("sse", b"data: {}\n\ndata: [DONE]\n\n", True),
            ("sse", b"data: {}\r\n\r\n: end\r\ndata:[DONE]\r\n\r\n", True),
            ("sse", b'data: {"error": {}}\n\n', True),
            ("sse", b"data: {}\n\n", False),
            ("sse", b"data: {}\n\ndata: [DONE]\n\ndata: {", False),
            ("sse", b"", False),
            ("ndjson", b'{"done":true}\n', True),
            ("ndjson", b'{"error":"full"}\n', True),
            ("ndjson", b'{"done":false}\n', False),
            ("ndjson", b'{"done":true}', False),
        ],
    )
    def test_a_stream_is_whole_when_it_says_so(self, stream: str, text: bytes, is_whole: bool) -> None:
        reader = Reader(stream)
        reader.feed(text)
        assert (reader.rest() == b"") is is_whole

    def test_each_byte_of_an_event_without_an_end_is_searched_once(self) -> None:
        reader = Reader("sse")
        for _ in range(100):
            reader.feed(b"x" * 1000)
            assert reader._searched == len(reader._buffer)
        assert reader.feed(b"\n") + reader.feed(b"\n") == b"x" * 100_000 + b"\n\n", "an end in two pieces is found"


def test_a_failed_look_up_keeps_the_last_good_addresses_and_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the word that there is no such name means that no server is there."""
    good = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 1)) for host in ("127.0.0.1", "127.0.0.2")]
    answer: list[Any] = [good]

    def look_up(*_: object, **__: object) -> Any:
        if isinstance(answer[0], OSError):
            raise answer[0]
        return answer[0]

    async def rounds() -> None:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        upstream = Upstream("http://fleet.test:1", 2)
        async with aiohttp.ClientSession() as session:
            await upstream.refresh(session)
            first = upstream.addresses["127.0.0.1"]
            place = upstream.take(Wanted(ROUTE, "a"))
            assert place is not None
            assert place.address is first
            for failure in (socket.gaierror(socket.EAI_AGAIN, "try again"), OSError(24, "too many open files")):
                answer[0] = failure
                await upstream.refresh(session)
                assert list(upstream.addresses) == ["127.0.0.1", "127.0.0.2"]
            answer[0] = good[1:]
            await upstream.refresh(session)
            assert list(upstream.addresses) == ["127.0.0.2"]
            answer[0] = good
            await upstream.refresh(session)
            assert upstream.addresses["127.0.0.1"] is first, "it comes back with its count"
            upstream.release(place)
            answer[0] = socket.gaierror(socket.EAI_NONAME, "no such name")
            await upstream.refresh(session)
            assert not upstream.addresses

    to_the_end(rounds())


def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """In a loop of its own."""
    with closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(work)


def upstream(*in_flight: int, cap: int = 4) -> Upstream:
    """One whose addresses have so many requests."""
    found = Upstream("http://fleet.test:1", cap)
    for number, count in enumerate(in_flight):
        found.addresses[f"h{number}"] = Address(f"h{number}", 1, count)
    return found


class TestPlaces:
    def wanted(self, name: bytes = b"") -> Wanted:
        return Wanted(ROUTE, "a", Turn((name,), name, 1000) if name else Turn())

    def host(self, fleet: Upstream, name: bytes) -> str:
        """Where a turn of the conversation of this name lands. Its server answers at once."""
        place = fleet.take(self.wanted(name))
        assert place is not None
        fleet.worked(place)
        fleet.release(place)
        return place.address.host

    def test_a_conversation_stays_on_its_server_until_that_is_gone(self) -> None:
        fleet = upstream(0, 0, 0)
        names = [f"conversation {number}".encode() for number in range(30)]
        first = {name: self.host(fleet, name) for name in names}
        assert set(first.values()) == {"h0", "h1", "h2"}
        assert {name: self.host(fleet, name) for name in names} == first
        gone = fleet.addresses.pop("h1")
        second = {name: self.host(fleet, name) for name in names}
        assert all(second[name] == first[name] for name in names if first[name] != "h1"), "nobody else moves"
        fleet.addresses["h1"] = gone
        assert {name: self.host(fleet, name) for name in names} == second, "nor comes back"

    def test_a_place_at_a_server_is_given_back_with_all_of_its_load(self) -> None:
        fleet = upstream(0, 0)
        places = [fleet.take(self.wanted(bytes([number + 1]))) for number in range(6)]
        assert sum(address.load for address in fleet.addresses.values()) > 6000
        for number, place in enumerate(places):
            assert place is not None
            if number % 2:
                place.read()
            fleet.release(place)
        assert [(address.load, address.in_flight) for address in fleet.addresses.values()] == [(0, 0), (0, 0)]

    def test_one_that_is_out_gets_nothing_unless_more_than_half_are(self) -> None:
        fleet = upstream(0, 0)
        first, second = fleet.addresses.values()
        assert [first.failed() for _ in range(5)] == [False] * 4 + [True]
        assert {self.taken(fleet, each) for each in range(1, 5)} == {second}
        second.eject()
        assert {self.taken(fleet, each) for each in range(1, 5)} == {first}, "the other one has no place"

    def taken(self, fleet: Upstream, number: int) -> Address | None:
        place = fleet.take(self.wanted(bytes([number])))
        return place and place.address

    def test_one_that_comes_back_gets_twice_as_many_after_each_answer(self) -> None:
        address = Address("a", 1)
        assert (address.eject(), address.places) == (10, 1)
        assert (address.eject(), address.places) == (20, 1)
        places = [address.places]
        for _ in range(4):
            address.worked(8)
            places.append(address.places)
        assert places == [1, 2, 4, math.inf, math.inf]
        assert address.eject() == 10, "its past is forgotten with its last place"

    def lined(self) -> tuple[Upstream, Place]:
        """Two servers with one place each, the first taken by a long conversation that it holds."""
        fleet = upstream(0, 0, cap=1)
        fleet.lines = True
        long = Wanted(ROUTE, "a", Turn((b"long",), b"long", 1_000_000))
        place = fleet.take(long)
        assert place is not None
        fleet.worked(place)
        place.read()
        return fleet, place

    @pytest.mark.parametrize(("size", "waits"), [(1_000_000, True), (2000, False)])
    def test_a_turn_waits_for_the_server_that_holds_it_where_that_is_sooner(self, size: int, waits: bool) -> None:
        async def rounds() -> None:
            fleet, place = self.lined()
            again = Wanted(ROUTE, "a", Turn((b"long",), b"long", size))
            if not waits:
                other = fleet.take(again)
                assert other is not None
                assert (other.address is not place.address, other.reason) == (True, "spilled")
                return
            assert fleet.take(again) is None, "though another server is free"
            waiting = asyncio.create_task(fleet.wait(again, 5))
            await asyncio.sleep(0)
            stranger = fleet.take(Wanted(ROUTE, "a", Turn((b"new",), b"new", 1000)))
            assert stranger is not None, "who waits for one server keeps nobody from another"
            assert stranger.address is not place.address
            fleet.release(place)
            got = await asyncio.wait_for(waiting, 5)
            assert (got.address is place.address, got.reason, got.unread) == (True, "bound", 0)
            fleet.release(got)
            fleet.release(stranger)
            assert [(address.load, address.in_flight) for address in fleet.addresses.values()] == [(0, 0), (0, 0)]

        to_the_end(rounds())

    def test_a_turn_that_has_waited_long_enough_takes_any_server(self) -> None:
        async def rounds() -> None:
            fleet, place = self.lined()
            again = Wanted(ROUTE, "a", Turn((b"long",), b"long", 1_000_000))
            got = await fleet.wait(again, 0.05)
            assert (got.address is not place.address, got.reason) == (True, "spilled")
            with pytest.raises(TimeoutError):
                await fleet.wait(again, 0.05)
            for each in (place, got):
                fleet.release(each)
            assert [(address.load, address.in_flight) for address in fleet.addresses.values()] == [(0, 0), (0, 0)]

        to_the_end(rounds())

    def test_a_line_moves_on_when_its_server_is_gone(self) -> None:
        async def rounds() -> None:
            fleet, place = self.lined()
            waiting = asyncio.create_task(fleet.wait(Wanted(ROUTE, "a", Turn((b"long",), b"long", 1_000_000)), 5))
            await asyncio.sleep(0)
            place.address.answers = False
            fleet.release(place)
            got = await asyncio.wait_for(waiting, 5)
            assert (got.address is not place.address, got.reason) == (True, "lost")

        to_the_end(rounds())

    def test_a_place_that_comes_while_its_request_leaves_is_given_to_the_next(self) -> None:
        async def rounds() -> None:
            fleet = upstream(0, cap=1)
            [address] = fleet.addresses.values()
            place = fleet.take(self.wanted())
            assert place is not None
            first, second = (asyncio.create_task(fleet.wait(self.wanted(), 5)) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            fleet.release(place)
            assert (await asyncio.wait_for(second, 5)).address is address
            assert address.in_flight == 1

        to_the_end(rounds())
