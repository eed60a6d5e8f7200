"""Keys in the stack's configuration: names, the old list, and refusals that never show a key."""

import json
from typing import Any

import pulumi
import pytest

from api_server.keys import Grant
from infra.documentation import configuration
from infra.program.settings import keys
from tests.unit.test_settings_fuzz import LINE, refusal

KEY, OTHER = "a-key-of-sufficient-length", "another-key-of-sufficient-length"
ALIASES = {"coder": {"model": "smollm2:135m"}}


def loaded(value: Any) -> str:
    """What is said about the dev stack with these keys."""
    return refusal("dev", (), {keys.SETTING: json.dumps(value)}, aliases=ALIASES)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    return said


def test_a_map_of_names_is_taken_and_nothing_is_said(warnings: list[str]) -> None:
    whole = {"key": OTHER, "owner": "Team", "expires": "2027-01-31T12:00:00Z", "models": ["coder", "smollm2:135m"]}
    limits = {"requestsPerMinute": 60, "tokensPerMinute": 100_000, "concurrency": 4, "priority": -3}
    value = {"alice": {"key": KEY}, "search.team@example": {**whole, **limits}}
    assert loaded(value) == ""
    assert warnings == []
    assert keys.named(value) == value


def test_an_old_list_is_read_named_by_its_order_and_said_to_be_old(warnings: list[str]) -> None:
    assert loaded([KEY, OTHER, KEY]) == ""
    assert warnings == [
        "modelfleet:apiKeys: got a list, the old form, want a map of names; the keys are key-1 to key-2 until they have names (docs/keys.md)"
    ]
    assert keys.named([KEY, OTHER, KEY]) == {"key-1": {"key": KEY}, "key-2": {"key": OTHER}}
    assert loaded([KEY]) == ""
    assert "the keys are key-1 until" in warnings[1]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ([], "modelfleet:apiKeys: got another form, want a map of names to"),
        ({}, "modelfleet:apiKeys: got another form, want a map of names to"),
        ([KEY, 3], "modelfleet:apiKeys: got another form"),
        (KEY, "modelfleet:apiKeys: got another form"),
        ({"alice": KEY}, "modelfleet:apiKeys: got another form"),
        ({KEY: "alice"}, "modelfleet:apiKeys: got another form"),
        (["short"], "modelfleet:apiKeys.key-1.key: got a secret value, want 16 or more printable characters; make another key"),
        ({"alice": {"key": "short"}}, "modelfleet:apiKeys.alice.key: got a secret value, want 16 or more printable"),
        ({"alice": {"key": f"{KEY}\n{KEY}"}}, "modelfleet:apiKeys.alice.key: got a secret value, want 16 or more printable"),
        ({"alice": {"key": 3}}, "modelfleet:apiKeys.alice.key: got a secret value, want a valid string"),
        ({"alice": {"owner": "Alice"}}, "modelfleet:apiKeys.alice.key: got nothing, want a value"),
        ({"alice": {"key": KEY, "rank": 3}}, "modelfleet:apiKeys.alice.rank: got an unknown key, want one of concurrency, expires,"),
        ({"alice": {"key": KEY, "priority": 11}}, "modelfleet:apiKeys.alice.priority: got a secret value, want less than or equal to 10"),
        ({"alice": {"key": KEY, "priority": -11}}, "modelfleet:apiKeys.alice.priority: got a secret value, want greater than or equal to"),
        ({"alice": {"key": KEY, "priority": "high"}}, "modelfleet:apiKeys.alice.priority: got a secret value, want a valid integer"),
        ({"alice": {"key": KEY, "priority": 0.5}}, "modelfleet:apiKeys.alice.priority: got a secret value, want a valid integer"),
        ({"alice": {"key": KEY, "expires": "soon"}}, "modelfleet:apiKeys.alice.expires: got a secret value, want a date such as 2027-01-31"),
        ({"alice": {"key": KEY, "expires": "9999-12-31"}}, "modelfleet:apiKeys.alice.expires: got a secret value, want a date"),
        ({"alice": {"key": KEY, "concurrency": 0}}, "modelfleet:apiKeys.alice.concurrency: got a secret value, want greater than"),
        ({"alice": {"key": KEY, "models": []}}, "modelfleet:apiKeys.alice.models: got a secret value, want"),
        ({"alice": {"key": KEY, "models": ["coder", "x:1"]}}, "modelfleet:apiKeys.alice.models.1: got x:1, want one of smollm2:135m, "),
        ({"al ice": {"key": KEY}}, 'modelfleet:apiKeys."al ice"'),
        ({"alice": {"key": KEY}, "bob": {"key": f" {KEY} "}}, "modelfleet:apiKeys: got one key for alice and bob, want another key for each"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_without_a_key(value: Any, line: str) -> None:
    (said,) = loaded(value).splitlines()
    assert said.startswith(line)
    assert LINE.match(said)
    assert KEY not in said


def test_what_a_key_may_use_is_understood_by_the_api_server() -> None:
    known, written = ({field.alias for field in model.model_fields.values()} for model in (Grant, keys.ApiKeySettings))
    assert known - {"hash"} == written - {"key"}


def test_a_rendering_has_the_names_of_a_stack_and_none_of_its_keys() -> None:
    committed = {"alice": {"key": {"secure": "v1:x"}, "owner": "Alice"}, "bob": {"key": {"secure": "v1:y"}, "models": ["coder"]}}
    found = json.loads(keys.masked(committed))
    assert loaded(found) == ""
    assert {name: {part for part in each if part != "key"} for name, each in found.items()} == {"alice": {"owner"}, "bob": {"models"}}
    for unnamed in (None, {"secure": "v1:x"}, [KEY]):
        assert json.loads(keys.masked(unnamed)) == {"masked": {"key": "masked-in-the-rendering"}}


def test_the_models_are_asked_with_the_key_that_has_the_fewest_bounds() -> None:
    assert keys.widest([KEY, OTHER]) == KEY
    assert keys.widest({"a": {"key": KEY, "models": ["coder"]}, "b": {"key": OTHER, "owner": "Team", "priority": 1}}) == OTHER


def test_a_gateway_that_knows_no_priority_reads_the_keys_that_have_none() -> None:
    """As in an update from the version before: a field that it does not know would make the whole file one that it cannot read."""
    found = keys.named({"alice": {"key": KEY}, "bob": {"key": OTHER, "priority": 2}})
    assert found == {"alice": {"key": KEY}, "bob": {"key": OTHER, "priority": 2}}


def test_editors_know_both_forms() -> None:
    forms = configuration.schema()["properties"]["config"]["properties"]["modelfleet:apiKeys"]["anyOf"]
    entry = forms[-1]["additionalProperties"]
    assert entry["required"] == ["key"]
    assert {"requestsPerMinute", "models", "key"} <= entry["properties"].keys()
