"""Which model an alias stands for, for whom, and from when."""

import json
import logging
import time
from pathlib import Path

import pytest

from api_server import watched
from api_server.aliases import Alias, Aliases, AliasesError

MODELS = ("old:1", "new:1")


def conversations(count: int) -> list[bytes]:
    return [f"conversation {number}".encode() for number in range(count)]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watched, "RECHECK_S", 0)
    path = tmp_path / "aliases"
    path.write_text(json.dumps({"coder": {"model": "old:1"}}))
    return path


def replace(path: Path, text: str) -> None:
    """As the kubelet does: another file under the same name."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


@pytest.mark.parametrize("share", [0, 1, 10, 50, 99, 100])
def test_a_share_of_the_conversations_goes_ahead(share: int) -> None:
    alias = Alias(model="old:1", next="new:1", share=share)
    ahead = [alias.target(each) == "new:1" for each in conversations(5_000)]
    # Four standard deviations of a binomial distribution.
    assert abs(sum(ahead) / len(ahead) - share / 100) <= 4 * (share / 100 * (1 - share / 100) / len(ahead)) ** 0.5


def test_a_larger_share_sends_nobody_back() -> None:
    """A conversation whose prompt is warm at the next version stays there."""
    small, large = (Alias(model="old:1", next="new:1", share=share) for share in (10, 40))
    ahead = [each for each in conversations(1000) if small.target(each) == "new:1"]
    assert ahead
    assert all(large.target(each) == "new:1" for each in ahead)


def test_a_changed_file_counts_and_a_broken_one_does_not(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    aliases = Aliases(file, MODELS)
    assert aliases.now() == {"coder": Alias(model="old:1")}
    replace(file, json.dumps({"coder": {"model": "new:1"}}))
    assert aliases.now() == {"coder": Alias(model="new:1")}
    for broken in (
        "",
        "{",
        "[]",
        '{"coder": "old:1"}',
        '{"coder": {"model": "old:1", "shares": 3}}',
        '{"coder": {"model": 1, "share": 101}}',
    ):
        replace(file, broken)
        with caplog.at_level(logging.ERROR):
            assert aliases.now() == {"coder": Alias(model="new:1")}
        assert caplog.messages[-1].endswith("want aliases; correct the setting `aliases`; the old aliases stay")
    file.unlink()
    assert aliases.now() == {"coder": Alias(model="new:1")}
    replace(file, "{}")
    assert aliases.now() == {}


def test_a_model_that_this_process_does_not_route_changes_nothing(file: Path) -> None:
    """In a rollout that adds a model, the file knows it first."""
    aliases = Aliases(file, MODELS)
    replace(file, json.dumps({"coder": {"model": "newest:1"}, "fast": {"model": "old:1", "next": "newest:1", "share": 5}}))
    assert aliases.now() == {"coder": Alias(model="old:1")}
    assert Aliases(file, (*MODELS, "newest:1")).now().keys() == {"coder", "fast"}


def test_a_file_that_cannot_be_read_at_the_start_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AliasesError, match=r"aliases: got No such file or directory, want a readable file; mount the ConfigMap there$"):
        Aliases(tmp_path / "aliases", MODELS)
    assert Aliases(None, MODELS).now() == {}


def test_a_file_is_looked_at_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    found = watched.Watched(path)
    replace(path, "2")
    assert not found.has_changed()
    time.sleep(watched.RECHECK_S)
    assert found.has_changed()
    assert not found.has_changed()


@pytest.mark.parametrize(
    ("share", "models"),
    [(0, ["old:1"]), (1, ["old:1", "new:1"]), (50, ["old:1", "new:1"]), (51, ["new:1", "old:1"]), (100, ["new:1"])],
)
def test_the_models_of_an_alias_are_those_that_get_conversations(share: int, models: list[str]) -> None:
    assert Alias(model="old:1", next="new:1", share=share).models == models
