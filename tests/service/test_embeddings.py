"""Embeddings that were made before, with the real Ollama and the real cache server: the same numbers, in the same order, or a fresh answer."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import ollama as ollama_client
import openai
import pytest
import redis

from api_server.embeddings import PREFIX
from tests.service.conftest import KEY, PASSWORD, ApiServerFactory, ModelServerFactory, as_user, running_valkey
from tests.service.processes import Service, free_port
from tests.service.test_gateway import metric
from tests.service.test_named_keys import ALICE, BOB, grant

MODEL = "embed:1"
PATIENCE_S = 2.0
"""Of a client that must not notice a cache server which does not answer; an embedding of the tiny model takes milliseconds."""


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Of a cache server of its own."""
    port = free_port()
    with running_valkey(tmp_path, port):
        yield port


@pytest.fixture
def gateway(api_server: ApiServerFactory, ollama: Service, port: int, tmp_path: Path) -> Service:
    route: dict[str, object] = {"url": ollama.url, "model": MODEL, "engine": "ollama", "context_length": 2048}
    (tmp_path / "keys").write_text(json.dumps({"first": grant(KEY), "alice": grant(ALICE), "bob": grant(BOB)}))
    return api_server({MODEL: route}, **as_user(f"redis://127.0.0.1:{port}/0", "api-server", tmp_path))


def client(gateway: Service, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def embedded(gateway: Service, texts: list[str], key: str = KEY, **fields: Any) -> list[list[float]]:
    with client(gateway, key) as api:
        answer = api.embeddings.create(model=MODEL, input=texts, **fields)
    assert [each.index for each in answer.data] == list(range(len(texts)))
    assert all(each.object == "embedding" for each in answer.data)
    return [each.embedding for each in answer.data]


def outcomes(gateway: Service) -> tuple[float, float]:
    """Texts that were found, and that were made."""
    return tuple(metric(gateway, "api_server_embeddings_total", model=MODEL, outcome=each) for each in ("found", "made"))  # pyright: ignore[reportReturnType]


def saved(gateway: Service) -> float:
    """Seconds."""
    return metric(gateway, "api_server_saved_seconds_total", model=MODEL, tier="embeddings")


def stored(port: int) -> redis.Redis:
    return redis.Redis(port=port, password=PASSWORD)


@pytest.mark.parametrize("form", ["base64", "float"])
def test_a_text_is_embedded_once_and_each_answer_is_in_the_order_of_its_question(gateway: Service, form: Any) -> None:
    begun = time.monotonic()
    a, b, c = embedded(gateway, ["a", "b", "c"], encoding_format=form)
    took_s = time.monotonic() - begun
    assert a != b != c
    assert (outcomes(gateway), saved(gateway)) == ((0, 3), 0)
    assert embedded(gateway, ["c", "a", "b", "a"], encoding_format=form) == [c, a, b, a]
    assert outcomes(gateway) == (4, 3)
    assert 0 < saved(gateway) < took_s * 4 / 3, "each its share of the time that a server took for it and the others"
    new = embedded(gateway, ["new"], encoding_format=form)
    assert embedded(gateway, ["b", "d", "a", "new", "e", "d"], encoding_format=form)[:4:2] == [b, a]
    mixed = embedded(gateway, ["b", "d", "a", "new", "e", "d"], encoding_format=form)
    assert (mixed[0], mixed[2], [mixed[3]], mixed[1]) == (b, a, new, mixed[5])
    assert mixed[1] != mixed[4]


def test_forms_and_dimensions_are_not_confused(gateway: Service) -> None:
    whole = embedded(gateway, ["a"], encoding_format="float")
    # The openai package asks for base64 unless it is told otherwise, and reads it.
    assert embedded(gateway, ["a"]) == [pytest.approx(whole[0], rel=1e-6)]
    short = embedded(gateway, ["a"], encoding_format="float", dimensions=8)
    assert len(short[0]) == 8 < len(whole[0])
    assert outcomes(gateway) == (0, 3)
    assert embedded(gateway, ["a"], encoding_format="float", dimensions=8) == short


def test_ollamas_own_api_has_the_same(gateway: Service) -> None:
    with ollama_client.Client(gateway.url, headers={"Authorization": f"Bearer {KEY}"}) as api:
        first = api.embed(MODEL, ["a", "b"])
        again = api.embed(MODEL, ["b", "c", "a"])
        assert [*again.embeddings][::2] == [first.embeddings[1], first.embeddings[0]]
        assert api.embed(MODEL, ["b", "c", "a"]).embeddings == again.embeddings
        assert api.embed(MODEL, "a").embeddings == [first.embeddings[0]]
    assert outcomes(gateway) == (6, 3)


def test_so_has_a_model_server(api_server: ApiServerFactory, model_server: ModelServerFactory, port: int, tmp_path: Path) -> None:
    route: dict[str, object] = {"url": model_server(MODEL).url, "model": MODEL}
    gateway = api_server({MODEL: route}, **as_user(f"redis://127.0.0.1:{port}/0", "api-server", tmp_path))
    a, b = embedded(gateway, ["a", "b"])
    c = embedded(gateway, ["c"])
    assert embedded(gateway, ["b", "c", "a"]) == [b, *c, a]
    assert outcomes(gateway) == (3, 3)


def test_another_key_finds_nothing(gateway: Service) -> None:
    assert embedded(gateway, ["a"], ALICE) == embedded(gateway, ["a"], BOB)
    assert outcomes(gateway) == (0, 2)
    embedded(gateway, ["a"], BOB)
    assert outcomes(gateway) == (1, 2)


def test_what_was_found_costs_no_tokens_and_what_was_made_does(gateway: Service) -> None:
    with client(gateway) as api:
        made = api.embeddings.create(model=MODEL, input=["one two three"]).usage.prompt_tokens
        assert made > 0
        assert api.embeddings.create(model=MODEL, input=["one two three"]).usage.prompt_tokens == 0
        assert api.embeddings.create(model=MODEL, input=["one two three", "four"]).usage.prompt_tokens > 0


@pytest.mark.parametrize(
    "given",
    [b"", b"nonsense", b"x" * 200_000, bytes(16) + b"[0.5, 0.5]", "of another text"],
    ids=["empty", "nonsense", "long", "unsigned", "of-another-text"],
)
def test_what_is_no_embedding_of_ours_is_made_again(gateway: Service, port: int, given: bytes | str) -> None:
    first = embedded(gateway, ["a"])
    with stored(port) as cache:
        [mine] = cache.keys(f"{PREFIX}*")  # pyright: ignore[reportGeneralTypeIssues]
        embedded(gateway, ["b"])
        [other] = [key for key in cache.keys(f"{PREFIX}*") if key != mine]  # pyright: ignore[reportGeneralTypeIssues]
        cache.set(mine, given if isinstance(given, bytes) else cache.get(other))  # pyright: ignore[reportArgumentType]
        assert embedded(gateway, ["a"]) == first
        assert outcomes(gateway) == (0, 3)
        cache.delete(mine)
        cache.lpush(mine, "a list")
    assert embedded(gateway, ["a"]) == first


def test_no_text_can_be_read_or_looked_for_in_the_cache_server(gateway: Service, port: int) -> None:
    embedded(gateway, ["a text that nobody may read"])
    with stored(port) as cache:
        [key] = cache.keys(f"{PREFIX}*")  # pyright: ignore[reportGeneralTypeIssues]
        assert b"nobody" not in bytes(key) + bytes(cache.get(key))  # pyright: ignore[reportArgumentType]
        assert 0 < cache.ttl(key) <= 30 * 86400  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("how", ["stopped", "killed", "full", "read-only"])
def test_a_cache_server_that_does_not_answer_costs_nothing(how: str, api_server: ApiServerFactory, ollama: Service, tmp_path: Path) -> None:
    port = free_port()
    memory = {"max_memory_bytes": 2**20, "policy": "noeviction"} if how == "full" else {}
    with ExitStack() as stack:
        cache = stack.enter_context(running_valkey(tmp_path, port, **memory))
        route: dict[str, object] = {"url": ollama.url, "model": MODEL, "engine": "ollama", "context_length": 2048}
        gateway = api_server({MODEL: route}, **as_user(f"redis://127.0.0.1:{port}/0", "api-server", tmp_path))
        first = embedded(gateway, ["a"])
        if how == "stopped":
            cache.send_signal(signal.SIGSTOP)
        elif how == "killed":
            cache.kill()
            cache.wait()
        elif how == "read-only":
            with stored(port) as direct:
                direct.execute_command("ACL", "SETUSER", "api-server", "-set")
        for count in range(30):
            started = time.monotonic()
            texts = ["a", *(f"{count} {number}" for number in range(5))]
            assert embedded(gateway, texts)[0] == first[0]
            assert time.monotonic() - started < PATIENCE_S


def test_a_refusal_is_the_same_where_a_part_was_found(gateway: Service) -> None:
    embedded(gateway, ["short"])
    with client(gateway) as api:
        with pytest.raises(openai.BadRequestError) as caught:
            api.embeddings.create(model=MODEL, input=["short", "x" * 3000])
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError):
            api.embeddings.create(model=MODEL, input=["short", 3])  # pyright: ignore[reportArgumentType]


def test_tokens_instead_of_texts_are_not_looked_up(gateway: Service) -> None:
    body = {"model": MODEL, "input": [1, 2, 3]}
    answer = httpx.post(f"{gateway.url}/v1/embeddings", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False)
    assert answer.status_code in (200, 400)
    assert outcomes(gateway) == (0, 0)


@pytest.mark.parametrize("dimensions", [2**64, -(10**30), 0])
def test_a_number_of_any_size_is_refused_as_without_a_cache(
    gateway: Service, api_server: ApiServerFactory, ollama: Service, dimensions: int
) -> None:
    route: dict[str, object] = {"url": ollama.url, "model": MODEL, "engine": "ollama", "context_length": 2048}
    body, headers = {"model": MODEL, "input": "a", "dimensions": dimensions}, {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
        answers = [client.post(f"{each.url}/v1/embeddings", json=body) for each in (gateway, api_server({MODEL: route}))]
    with_cache, without = ((answer.status_code, answer.json().get("error")) for answer in answers)
    assert with_cache == without
