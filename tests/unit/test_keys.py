"""Who may come in with which key, and what a key may use."""

import dataclasses
import hashlib
import hmac
import json
import logging
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from api_server import errors, limits, openapi, watched
from api_server.aliases import Alias, Aliases
from api_server.keys import Grant, Key, Keys, KeysError, read
from api_server.limits import Account, Limits, Minute, Used
from api_server.metrics import Metrics
from api_server.peers import Peers
from api_server.requests import Asked
from api_server.routing import Routing
from api_server.sessions import Turn
from api_server.settings import Route
from api_server.spending import Spent, spent
from api_server.usage import Reader

ALICE, BOB = "a-key-of-alice-0123456789", "a-key-of-bob-0123456789"
ALONE = Peers(b"alone", 1)
ROUTES = {name: Route(url="http://ollama:1", engine="ollama", context_length=9) for name in ("small:1", "large:1")}
REFUSED = "Authorization: got no valid key, want Bearer <key>; ask the operator of this fleet for one"


def hashed(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=32).hexdigest()


def grant(key: str = ALICE, **fields: Any) -> dict[str, Any]:
    return {"hash": hashed(key), **fields}


def account(**fields: Any) -> Account:
    return Account(Key("alice", Grant.model_validate(grant(**fields))), ALONE, Used(), Used())


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watched, "RECHECK_S", 0)
    path = tmp_path / "keys"
    write(path, alice=grant(), bob=grant(BOB, owner="team", models=["small:1"]))
    return path


def write(path: Path, **keys: object) -> None:
    """As the kubelet does: another file under the same name."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(keys))
    fresh.replace(path)


def bearer(keys: Keys, key: str) -> Key:
    return keys.holder([f"Bearer {key}"], [])


def refusal(keys: Keys, key: str) -> str:
    with pytest.raises(errors.ApiError) as raised:
        bearer(keys, key)
    assert (raised.value.status, raised.value.body["error"]["code"]) == (401, "invalid_api_key")
    assert raised.value.headers == {"WWW-Authenticate": "Bearer"}
    return str(raised.value)


def test_a_key_has_the_name_that_the_file_gives_its_hash(file: Path) -> None:
    keys = Keys(file)
    assert bearer(keys, ALICE).name == keys.holder([], [ALICE]).name == "alice"
    assert bearer(keys, BOB).grant.models == {"small:1"}
    assert refusal(keys, "another-key-0123456789") == REFUSED
    assert refusal(keys, hashed(ALICE)) == REFUSED, "who has read the file has no key"


@pytest.mark.parametrize(
    ("authorizations", "keys"),
    [([], []), (["Basic " + ALICE], []), ([f"Bearer {ALICE}"] * 2, []), ([], [ALICE, ALICE]), (["Bearer \udcff"], []), ([ALICE], [])],
)
def test_what_carries_no_one_key_is_refused(file: Path, authorizations: list[str], keys: list[str]) -> None:
    with pytest.raises(errors.ApiError, match="got no valid key"):
        Keys(file).holder(authorizations, keys)


def test_every_wrong_key_is_as_much_work_as_any_other(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One digest, and one comparison in constant time with each key that is known, whichever of them it resembles."""
    keys, work = Keys(file), Counter[str]()
    digest, compare = hashlib.blake2b, hmac.compare_digest

    def digests(*given: Any, **fields: Any) -> Any:
        work["digests"] += 1
        return digest(*given, **fields)

    def compares(one: bytes, other: bytes) -> bool:
        work["comparisons"] += 1
        return compare(one, other)

    monkeypatch.setattr(hashlib, "blake2b", digests)
    monkeypatch.setattr(hmac, "compare_digest", compares)
    for wrong in ("", "alice", ALICE[:-1], "x" + ALICE[1:], ALICE + BOB, "x" * 10_000, digest(ALICE.encode(), digest_size=32).hexdigest()):
        work.clear()
        with pytest.raises(errors.ApiError):
            bearer(keys, wrong)
        assert work == {"digests": 1, "comparisons": 2}, wrong
    work.clear()
    assert bearer(keys, ALICE).name == "alice"
    assert work == {"digests": 1, "comparisons": 2}


def test_a_key_that_is_gone_from_the_file_is_refused_at_the_next_look(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys(file)
    with caplog.at_level(logging.INFO):
        write(file, bob=grant(BOB))
        assert refusal(keys, ALICE) == REFUSED
    assert caplog.messages[-1] == "keys reloaded: bob"
    write(file)
    assert refusal(keys, BOB) == REFUSED, "a file without keys is one, or the last key could not be revoked"


def test_an_unusable_file_is_said_without_a_key_and_the_old_keys_stay(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys(file)
    for broken in (
        "{",
        '{"alice": "' + ALICE + '"}',
        '{"alice": {"hash": "' + ALICE + '"}}',
        json.dumps({ALICE + " ": grant()}),
        json.dumps({"alice": grant(expires=ALICE)}),
        json.dumps({"alice": grant(expires="9999-12-31")}),
        json.dumps({"alice": grant(concurrency=0)}),
        json.dumps({"alice": grant(priority=11)}),
        json.dumps({"alice": grant(priority="high")}),
        json.dumps({"alice": grant(rank=1)}),
        json.dumps({"alice": grant(), "anna": grant()}),
        "short\n",
        "",
    ):
        fresh = file.with_suffix(".new")
        fresh.write_text(broken)
        fresh.replace(file)
        with caplog.at_level(logging.ERROR):
            assert bearer(keys, ALICE).name == "alice"
        assert caplog.messages[-1].startswith(f"{file}: ")
        assert caplog.messages[-1].endswith("; the old keys stay")
        assert ALICE not in caplog.text
    file.unlink()
    assert bearer(keys, ALICE).name == "alice"


def test_the_old_form_has_names_by_its_order_and_is_said_to_be_old(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(f"{ALICE}\n\n  {BOB}\n")
    keys = Keys(file)
    assert caplog.messages == [f"{file}: got lines of keys, the old form, want names and hashes as JSON; they are key-1 to key-2"]
    assert (bearer(keys, ALICE).name, bearer(keys, BOB).name) == ("key-1", "key-2")
    assert bearer(keys, ALICE).grant == Grant.model_validate(grant())


def test_a_file_of_no_use_at_the_start_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"API_SERVER_KEYS_FILE: got No such file or directory for .*, want a readable file; mount the"):
        read(tmp_path / "keys")


def test_only_who_has_a_key_learns_that_it_has_expired(file: Path) -> None:
    now = datetime.now(UTC)
    write(file, alice=grant(expires=(now - timedelta(seconds=1)).isoformat()))
    keys = Keys(file)
    assert refusal(keys, ALICE) == REFUSED.replace("no valid key", "a key that has expired")
    assert refusal(keys, BOB) == REFUSED
    write(file, alice=grant(expires=(now + timedelta(hours=1)).isoformat()))
    assert bearer(keys, ALICE).name == "alice"


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ("2027-01-31", "2027-02-01T00:00:00+00:00"),
        ("2027-01-31T12:00:00", "2027-01-31T12:00:00+00:00"),
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00+00:00"),
        ("2027-01-31T12:00:00+02:00", "2027-01-31T12:00:00+02:00"),
    ],
)
def test_a_date_is_the_last_day_and_utc(said: str, end: str) -> None:
    assert Grant.model_validate(grant(expires=said)).expires == datetime.fromisoformat(end)


def test_a_minute_sums_up_sixty_seconds() -> None:
    minute = Minute()
    assert minute.wait_s(1000, 1) == 0
    minute.add(1000, 3)
    minute.add(1010, 2)
    assert [minute.wait_s(1010, limit) for limit in (6, 5, 4, 3, 2)] == [0, 50, 50, 50, 60]
    assert (minute.wait_s(1059, 5), minute.wait_s(1060, 5), minute.total) == (1, 0, 2)
    assert minute.wait_s(1500, 1) == 0
    assert minute.total == 0
    minute.add(1500, 1)
    assert minute.wait_s(1500, 1) == 60


def clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)


def refused(use: Account, most: int = 9) -> tuple[str, str]:
    with pytest.raises(errors.ApiError) as raised:
        use.admit(most)
    assert (raised.value.status, raised.value.body["error"]["code"]) == (429, "rate_limit_exceeded")
    return str(raised.value), raised.value.headers["Retry-After"]


def test_requests_beyond_the_limit_of_a_minute_are_told_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    use = account(requestsPerMinute=2)
    for now in (100, 130):
        clock(monkeypatch, now)
        use.admit(9)
    for _ in range(3):
        assert refused(use) == ("Authorization: got more than 2 requests a minute with this key, want fewer; try again after 30 s", "30")
    clock(monkeypatch, 160)
    use.admit(9)
    assert refused(use)[1] == "30", "a refused request does not count"


def test_tokens_count_after_the_answer_and_hold_up_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    use = account(tokensPerMinute=100)
    clock(monkeypatch, 100)
    use.charge(99)
    use.admit(9)
    use.charge(5000)
    assert refused(use) == ("Authorization: got more than 100 tokens a minute with this key, want fewer; try again after 60 s", "60")
    clock(monkeypatch, 160)
    use.admit(9)


def test_requests_at_once_are_the_keys_own_number_but_not_above_that_of_every_key() -> None:
    use = account(concurrency=2)
    with use, use:
        assert refused(use)[0].startswith("Authorization: got more than 2 requests at once with this key")
        with use:
            pass
    use.admit(9)
    few = account(concurrency=50)
    with few:
        assert refused(few, most=1)[0].startswith("Authorization: got more than 1 requests at once with this key")


def test_one_key_uses_up_nothing_of_another_one_and_a_new_one_under_its_name_goes_on() -> None:
    every = Limits(9, ALONE)
    alice, bob = Key("alice", Grant.model_validate(grant(requestsPerMinute=1))), Key("bob", Grant.model_validate(grant(BOB)))
    every.admitted(alice)
    for _ in range(5):
        every.admitted(bob)
    with pytest.raises(errors.ApiError):
        every.admitted(dataclasses.replace(alice, grant=Grant.model_validate(grant("another-key-0123456789", requestsPerMinute=1))))
    every.admitted(dataclasses.replace(alice, grant=Grant.model_validate(grant(requestsPerMinute=2))))


@pytest.fixture
def routing(tmp_path: Path) -> Routing:
    path = tmp_path / "aliases"
    path.write_text(json.dumps({"coder": {"model": "large:1"}, "writer": {"model": "small:1"}}))
    return Routing(ROUTES, Aliases(path, ROUTES))


def test_a_model_that_is_not_in_a_keys_list_is_as_unknown_as_any_other(routing: Routing) -> None:
    seen = routing.seen_by(frozenset({"small:1", "coder", "nobody-has-it"}))
    assert seen.find("small:1", native=False)[0] == "small:1"
    assert seen.find("coder", native=True)[0] == "large:1", "an alias leads where it leads"
    assert list(seen.targets()) == ["small:1", "coder"]
    for hidden, native in (("large:1", False), ("writer", True), ("large", True), ("nobody-has-it", False)):
        with pytest.raises(errors.ApiError) as raised:
            seen.find(hidden, native=native)
        with pytest.raises(errors.ApiError) as unknown:
            seen.find("x", native=native)
        assert (raised.value.status, raised.value.body) == (404, json.loads(json.dumps(unknown.value.body).replace("'x'", f"'{hidden}'")))
    assert routing.seen_by(frozenset()) is routing
    assert list(routing.targets()) == ["small:1", "large:1", "coder", "writer"]
    assert routing.aliases["coder"] == Alias(model="large:1")


def test_the_document_of_a_key_names_its_models_alone(routing: Routing) -> None:
    targets = routing.seen_by(frozenset({"coder"})).targets()
    text = json.dumps(openapi.document({name: route for name, (_, route) in targets.items()}))
    assert '"enum": ["coder"]' in text
    assert "small:1" not in text
    assert openapi.document({})["paths"]


def asked(most_tokens: int | None) -> Asked:
    return Asked("/v1/chat/completions", "small:1", ROUTES["small:1"], {}, [], "sse", False, Turn(), most_tokens, media=False)


def test_tokens_are_those_that_the_server_counted() -> None:
    reader = Reader("sse")
    usage = {"prompt_tokens": 40, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 30}}
    reader.feed(b'data: {"choices": [{}]}\n\n' * 2 + f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
    assert spent(reader, asked(999)) == Spent(prompt=40, cached=30, completion=2)
    assert spent(Reader("", prompt_tokens=-5, cached_tokens=9, completion_tokens=3), asked(9)) == Spent(completion=3)


def test_a_stream_that_was_left_after_a_first_count_has_no_less_than_its_events() -> None:
    """Messages begins with a count."""
    reader = Reader("messages")
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}
    reader.feed(f"event: message_start\ndata: {json.dumps(start)}\n\n".encode() + b"event: content_block_delta\ndata: {}\n\n" * 4)
    assert spent(reader, asked(400)) == Spent(prompt=9, completion=5)


def test_a_stream_that_was_left_counts_by_its_events_and_the_size_of_its_prompt() -> None:
    reader = Reader("sse")
    assert spent(reader, asked(41)) == Spent(), "nothing came, so nothing is known to have been done"
    for chunk in (b'data: {"a": 1}\n\ndata: {"a": 2}\n\n', b'data: {"a"', b': 3}\n\ndata: {"a": 4}\n\nda'):
        reader.feed(chunk)
    assert spent(reader, asked(41)) == Spent(prompt=11, completion=4)
    assert spent(reader, asked(None)) == Spent(completion=4)


def test_usage_is_counted_by_key_model_and_kind() -> None:
    metrics = Metrics([], ROUTES, lambda: 0, ALONE)
    metrics.spent("alice", "small:1", Spent(prompt=5, completion=2))
    metrics.spent("alice", "small:1", Spent(prompt=5, cached=4))
    labels = {"key": "alice", "model": "small:1"}
    found = {
        kind: metrics.registry.get_sample_value("api_server_key_tokens_total", labels | {"kind": kind})
        for kind in ("prompt", "cached", "completion")
    }
    assert found == {"prompt": 10, "cached": 4, "completion": 2}
