"""Answers that are put together from what was there and what a server has made."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.abilities import Abilities
from api_server.address import Address
from api_server.embeddings import Found, _texts
from api_server.paths import EMBEDDINGS, NATIVE_EMBED
from api_server.sending import Sender
from api_server.settings import Route

VECTORS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4)
PLACES = st.lists(st.tuples(VECTORS, st.booleans()), min_size=1, max_size=12)


def said(path: str, vectors: list[Any]) -> bytes:
    """A server's answer."""
    if path == NATIVE_EMBED:
        return json.dumps({"model": "m", "embeddings": vectors, "total_duration": 9, "prompt_eval_count": 4}).encode()
    data = [{"object": "embedding", "embedding": vector, "index": index} for index, vector in enumerate(vectors)]
    # A server may answer in another order.
    return json.dumps({"object": "list", "model": "m", "data": data[::-1], "usage": {"prompt_tokens": 4, "total_tokens": 4}}).encode()


def found(path: str, places: list[tuple[list[float], bool]]) -> Found:
    keys = [f"key {number}".encode() for number in range(len(places))]
    return Found(path, keys, [json.dumps(vector).encode() if there else None for vector, there in places], 10_000)


def vectors_of(path: str, document: bytes) -> list[Any]:
    answer = json.loads(document)
    if path == NATIVE_EMBED:
        return answer["embeddings"]
    return [each["embedding"] for each in sorted(answer["data"], key=lambda each: each["index"])]


@pytest.mark.parametrize("path", [EMBEDDINGS, NATIVE_EMBED])
@given(places=PLACES)
def test_each_text_has_its_own_embedding_whichever_were_there(path: str, places: list[tuple[list[float], bool]]) -> None:
    wanted = [vector for vector, _ in places]
    missing = [vector for vector, there in places if not there]
    part = found(path, places)
    if part.is_all:
        assert vectors_of(path, part.whole("m")) == wanted
        assert json.loads(part.whole("m"))["model"] == "m"
        return
    answer = part.merged(said(path, missing))
    assert vectors_of(path, answer) == wanted
    assert json.loads(answer).keys() == json.loads(said(path, missing)).keys(), "what else the server said stays"
    assert {key: json.loads(value) for key, value in part.made.items()} == {
        f"key {number}".encode(): vector for number, (vector, there) in enumerate(places) if not there
    }


@pytest.mark.parametrize("path", [EMBEDDINGS, NATIVE_EMBED])
@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[]", b"null", b'{"data": 3}', b'{"embeddings": 3}', b'{"data": [{"index": "0"}]}', b"\xff", b"[" * 5000],
)
def test_a_strange_answer_goes_on_as_it_is_or_fails_where_a_part_is_missing(path: str, answer: bytes) -> None:
    nothing = found(path, [([1.0], False)])
    assert nothing.merged(answer) == answer
    assert not nothing.made
    with pytest.raises(ValueError, match="no embeddings, or not those of all texts"):
        found(path, [([1.0], False), ([2.0], True)]).merged(answer)


@pytest.mark.parametrize("path", [EMBEDDINGS, NATIVE_EMBED])
def test_an_answer_of_another_length_is_none(path: str) -> None:
    with pytest.raises(ValueError, match="not those of all texts"):
        found(path, [([1.0], False), ([2.0], True)]).merged(said(path, [[1.0], [2.0]]))


@pytest.mark.parametrize("given", [None, 3, {}, [1, 2], [[1, 2], [3]], ["a", 3], [None]])
def test_what_is_no_text_is_not_looked_up(given: Any) -> None:
    assert _texts({"input": given}) == []


def server(host: str, digest: str, version: str, **fields: Any) -> Address:
    address = Address(host, 1, store={"m:latest": {"digest": digest}}, **fields)
    address.abilities["m", digest] = Abilities(version=version)
    return address


OLD, NEW = server("a", "1", "ollama 1 1"), server("b", "2", "ollama 1 2")


@pytest.mark.parametrize(
    ("servers", "version"),
    [
        ([], ""),
        ([OLD], "ollama 1 1"),
        ([OLD, server("c", "1", "ollama 1 1")], "ollama 1 1"),
        ([OLD, NEW], ""),
        ([OLD, server("c", "1", "ollama 2 1")], ""),
        ([OLD, server("c", "1", "")], ""),
        ([OLD, server("c", "2", "ollama 1 2", answers=False)], "ollama 1 1"),
        ([OLD, Address("c", 1, store={})], "ollama 1 1"),
    ],
)
def test_a_model_has_a_version_where_all_of_its_servers_have_the_same(servers: list[Address], version: str) -> None:
    nobody: Any = None
    route = Route(url="http://a:1", engine="ollama", context_length=1)
    assert asyncio.run(Sender(nobody, nobody, []).version(servers, "m", route)) == version
