"""Bodies of requests: how their values are counted, and what they may take."""

import asyncio
import itertools
import json
import threading
from typing import Any, cast

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from api_server.errors import ApiError
from api_server.intake import Budget, Claim, Intake, memory, resident
from api_server.requests import document
from api_server.values import Values

TEXTS = st.text(alphabet='a"\\{}[],: \n', max_size=12)
DOCUMENTS = st.recursive(TEXTS | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=30)


def values_of(document: Any) -> int:
    """Values and keys."""
    if isinstance(document, dict):
        return 1 + len(document) + sum(values_of(each) for each in document.values())
    return 1 + sum(values_of(each) for each in document) if isinstance(document, list) else 1


@given(document=DOCUMENTS, cuts=st.lists(st.integers(1, 9), max_size=40), spaces=st.sampled_from([None, 1]))
def test_values_are_counted_whatever_the_pieces(document: Any, cuts: list[int], spaces: int | None) -> None:
    body, pieces = json.dumps(document, indent=spaces).encode(), []
    for cut in cuts:
        pieces.append(body[:cut])
        body = body[cut:]
    exact = Values(10_000)
    exact._pieces = None
    for piece in [*pieces, body]:
        exact.add(piece)
    marks = exact.count
    # An empty list or object has one mark more than values within.
    assert values_of(document) <= marks <= 2 * values_of(document)
    bound = Values(10_000)
    assert all(bound.add(piece) for piece in [*pieces, body])
    assert bound.count >= marks


def test_marks_within_texts_count_only_until_they_are_too_many() -> None:
    values = Values(100)
    assert values.add(b'["' + b"{,:[" * 20)
    assert values.count > 80
    assert values.add(b"{,:[" * 20 + b'\\"{{{' * 40 + b"\\")
    assert values.add(b'",,,,,,,,,,,,,,,,,,,,,,,,,,,,')
    assert values.count == 2
    assert not values.add(b'", ' + b"[" * 100)


def test_the_sum_of_all_claims_stays_within_the_budget() -> None:
    budget = Budget(resident() + 100 * 2**20)
    first, second = Claim(budget), Claim(budget)
    first.grow(budget.whole - 10)
    first.grow(5)
    with pytest.raises(ApiError) as caught:
        second.grow(11)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "2")
    second.grow(10)
    with pytest.raises(ApiError) as caught:
        second.grow(budget.whole + 1)
    assert caught.value.status == 413
    first.free()
    second.free()
    assert budget.used == 0


def test_the_memory_is_found() -> None:
    assert resident() < memory() < 2**50


def test_a_large_body_is_read_beside_the_loop() -> None:
    intake = Intake(Budget(2**30), 2**25, 1000, 30)

    async def threads() -> list[threading.Thread]:
        return [await intake.beside(size, threading.current_thread) for size in (1000, 2**20)]

    small, large = asyncio.run(threads())
    assert small is threading.current_thread()
    assert large is not small


@pytest.mark.parametrize("text", ["[" * 200 + "]" * 200, '{"a":' * 101 + "1" + "}" * 101, "[" * 100_000])
def test_deep_documents_are_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        document(b'{"a": ' + text.encode() + b"}")
    assert caught.value.status == 400


def test_half_a_character_becomes_the_sign_for_it() -> None:
    assert document(rb'{"a": ["\ud83d", "\ud83d\ude00"], "\ude00": 1}') == {"a": ["\ufffd", "\N{GRINNING FACE}"], "\ufffd": 1}


class Arriving:
    """A request whose body comes in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.content, self.content_length = self, sum(map(len, pieces))

    def read_nowait(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def at_eof(self) -> bool:
        return not self._pieces


def taken(body: bytes, cuts: list[int], budget: Budget | None = None) -> int:
    """Bytes of memory that the body claims, when it comes cut there."""
    intake = Intake(budget or Budget(2**40), 2**25, 10**6, 30)
    pieces = [body[start:end] for start, end in itertools.pairwise([0, *cuts, len(body)])]
    with intake.claim() as claim:
        assert asyncio.run(intake.read(cast("web.Request", Arriving(pieces)), claim)) == body
        return claim.held


def test_what_a_body_claims_does_not_hang_on_where_it_is_cut() -> None:
    for body in (rb'{"a": "one\ntwo \\ three"}', rb'{"a": "caf\u00e9"}', '{"a": "café"}'.encode()):
        assert len({taken(body, [cut]) for cut in range(1, len(body))}) == 1
    long = b"b" * 10_000
    assert taken(b'{"a": "%b\\n"}' % long, []) * 2 < taken(b'{"a": "%b\\u000a"}' % long, [])


@pytest.mark.parametrize("a_character", ["e", "é"])
def test_code_takes_no_more_than_its_values_where_that_decides(a_character: str) -> None:
    body = json.dumps({"a": a_character + "{[,:" * 100_000}, ensure_ascii=False).encode()
    budget = Budget(resident() + 40 * 2**20)
    loosely = taken(body, [1000, 300_000])
    assert taken(body, [1000, 300_000], budget) <= budget.whole < loosely
