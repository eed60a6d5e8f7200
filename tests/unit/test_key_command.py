"""`make key`, as far as no cluster is needed: what it writes into the stack's configuration, and what it says."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from infra.engine.errors import CliError, CommandError
from infra.lifecycle import keys
from infra.lifecycle.deployment import Deployment

FIRST, NEW = "the-first-key-of-the-stack", "x" * 32


class Stack:
    """A stack's configuration, as Pulumi's command line keeps it: whole values, or parts below a path."""

    def __init__(self, value: Any, *, whole: bool) -> None:
        self.value, self.whole = value, whole
        self.commands: list[tuple[str, ...]] = []
        self.updates = 0
        self.fails = False

    def has_stack(self) -> bool:
        return True

    def read_config(self) -> dict[str, Any]:
        return {"modelfleet:apiKeys": {"secure": "v1:x"} if self.whole else self.value}

    def run(self, *arguments: str, stdin: str = "") -> str:
        self.commands.append(arguments)
        match arguments:
            case ("config", "get", "modelfleet:apiKeys"):
                return json.dumps(self.value)
            case ("config", "set", "--secret", "modelfleet:apiKeys"):
                self.value = json.loads(stdin)
            case ("config", "set", "--secret", "--path", path):
                assert path == 'modelfleet:apiKeys["alice"]["key"]'
                self.value["alice"] = {"key": stdin}
            case ("config", "rm", "--path", path):
                assert path == 'modelfleet:apiKeys["alice"]'
                del self.value["alice"]
            case _:
                raise AssertionError(arguments)
        return ""

    def update(self, command: str) -> None:
        assert command == "up"
        self.updates += 1
        if self.fails:
            raise CliError("it failed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made(Deployment):
    known: Any

    @property
    def cli(self) -> Any:
        return self.known

    def key(self) -> str:
        return FIRST


@pytest.fixture(autouse=True)
def _known_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.secrets, "token_urlsafe", lambda _: NEW)
    monkeypatch.setattr(keys, "_touch", lambda _: "2 pods of the API server read it now, within 5 s")


def change(stack: Stack, name: str = "alice", *, revoke: bool = False) -> None:
    deployment = Made(stack="dev", context="c", kubeconfig="k", state_dir=Path("/nowhere"), known=stack)
    keys.change(deployment, name, revoke=revoke)


@pytest.mark.parametrize("whole", [True, False])
def test_a_key_is_made_printed_once_and_taken_back(capsys: pytest.CaptureFixture[str], whole: bool) -> None:
    first = {"first": {"key": FIRST, "owner": "us"}}
    stack = Stack(dict(first), whole=whole)
    change(stack)
    assert stack.value == {**first, "alice": {"key": NEW}}
    assert capsys.readouterr() == (f"alice: {NEW}\n", "key: alice is accepted; 2 pods of the API server read it now, within 5 s\n")
    change(stack, revoke=True)
    assert stack.value == first
    out, err = capsys.readouterr()
    assert (out, err) == ("", "key: alice is revoked; 2 pods of the API server read it now, within 5 s\n")
    assert stack.updates == 2
    assert NEW not in str(stack.commands), "no key is an argument of a process"


def test_keys_of_an_old_list_get_their_names() -> None:
    stack = Stack([FIRST], whole=True)
    change(stack)
    assert stack.value == {"key-1": {"key": FIRST}, "alice": {"key": NEW}}


def test_an_update_that_fails_leaves_the_key_to_the_next_one(capsys: pytest.CaptureFixture[str]) -> None:
    stack = Stack({"first": {"key": FIRST}}, whole=True)
    stack.fails = True
    with pytest.raises(CliError):
        change(stack)
    assert capsys.readouterr().out == f"alice: {NEW}\n"
    assert stack.value["alice"] == {"key": NEW}


@pytest.mark.parametrize(
    ("name", "revoke", "line"),
    [
        ("", False, "NAME: got '', want 1 to 63 letters"),
        ("two words", False, "NAME: got 'two words', want 1 to 63"),
        ("first", False, "NAME: got first, which has a key, want another name"),
        ("alice", True, "NAME: got alice, want one of first, bob; correct it"),
        ("first", True, "NAME: got first, the key that make up asks the models with"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(name: str, revoke: bool, line: str) -> None:
    before = {"first": {"key": FIRST}, "bob": {"key": "another-key-of-the-stack"}}
    stack = Stack(dict(before), whole=True)
    with pytest.raises(CommandError) as refusal:
        change(stack, name, revoke=revoke)
    assert str(refusal.value).startswith(line)
    assert (stack.value, stack.updates) == (before, 0)


def test_the_only_key_stays() -> None:
    stack = Stack({"alice": {"key": "another-key-of-the-stack"}}, whole=True)
    with pytest.raises(CommandError, match="NAME: got alice, the only key, want another one beside it; run make key NAME=other first"):
        change(stack, revoke=True)


def test_without_a_stack_it_says_what_makes_one() -> None:
    with pytest.raises(CommandError, match="key: got no stack, want one that is up; run make up"):
        keys.change(None, "alice", revoke=False)
