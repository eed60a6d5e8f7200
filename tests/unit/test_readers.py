"""A gateway that ends waits for those who read its metrics again and again, and for nobody else."""

import asyncio
import time

import pytest

from api_server import readers
from api_server.readers import Readers


def waits(known: Readers, reads: dict[float, str] | None = None) -> float:
    """Seconds until they have all, while these addresses read after some seconds."""

    async def run() -> float:
        begun = time.monotonic()
        for after, address in (reads or {}).items():
            asyncio.get_running_loop().call_later(after, known.read, address)
        await known.have_all()
        return time.monotonic() - begun

    return asyncio.run(run())


def regular(*addresses: str, every_s: float = 1.0) -> Readers:
    """Each has read twice, the last time just now."""
    known, now = Readers(), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for at in (now - every_s, now):
            patch.setattr(readers.time, "monotonic", lambda at=at: at)
            for address in addresses:
                known.read(address)
    return known


def test_nobody_and_who_has_come_once_are_not_waited_for() -> None:
    known = Readers()
    assert waits(known) < 0.05
    known.read("a")
    assert waits(known) < 0.05


def test_each_of_them_comes_once_more() -> None:
    assert 0.6 <= waits(regular("a", "b"), {0.2: "a", 0.6: "b"}) < 0.9


def test_who_does_not_come_is_overdue_after_a_quarter_more_than_usual() -> None:
    assert 1.2 <= waits(regular("a")) < 1.5
    assert 1.2 <= waits(regular("a"), {0.1: "another"}) < 1.5


def test_who_comes_less_than_once_a_minute_is_not_waited_for() -> None:
    assert waits(regular("a", every_s=61)) < 0.05


def test_who_has_gone_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    known, now = regular(*map(str, range(1000))), time.monotonic()
    monkeypatch.setattr(readers.time, "monotonic", lambda: now + 121)
    known.read("a")
    assert known._last.keys() == {"a"}
    assert known._interval_s == {}
