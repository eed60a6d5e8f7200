"""No step of a command is silent for long, whatever it is."""

import io
import sys
import time

import pytest

from infra.lifecycle import __main__ as command
from infra.lifecycle.liveness import EVERY_S, heard


def test_what_lasts_is_said_again_until_something_else_is(capsys: pytest.CaptureFixture[str]) -> None:
    with heard(0.1):
        print("packages: installing nft with apt-get, once", file=sys.stderr, flush=True)
        time.sleep(0.5)
        print("images: base layer made in 4 s", file=sys.stderr, flush=True)
    print("and no word more", file=sys.stderr)
    time.sleep(0.2)
    first, *again, last, after = capsys.readouterr().err.splitlines()
    assert first == "packages: installing nft with apt-get, once"
    assert again
    assert {line.rpartition(" … ")[0] for line in again} == {first}
    assert again[0].endswith(" s so far")
    assert (last, after) == ("images: base layer made in 4 s", "and no word more")


def test_a_question_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with heard(0.05):
        print("Install them with apt-get now? [y/N] ", end="", file=sys.stderr, flush=True)
        time.sleep(0.3)
    assert stream.getvalue() == "Install them with apt-get now? [y/N] "


def test_what_asks_the_stream_gets_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with heard():
        assert not sys.stderr.isatty()
    assert sys.stderr is stream


@pytest.mark.parametrize("name", ["up", "down", "check", "backup", "restore"])
def test_each_command_that_lasts_is_heard(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def lasts(*_: object) -> int:
        print("a step of it", file=sys.stderr)
        time.sleep(0.4)
        return 0

    monkeypatch.setattr(command, "_run", lasts)
    monkeypatch.setattr("infra.lifecycle.liveness.EVERY_S", 0.1)
    assert command.main([name]) == 0
    assert "a step of it … " in capsys.readouterr().err


def test_fifteen_seconds_are_never_silent() -> None:
    assert EVERY_S * 1.1 < 15
