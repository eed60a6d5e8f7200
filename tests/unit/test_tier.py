"""The tier of files of vLLM's KV cache within its size: writers and the keeper, on real files."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from model_server.tier import agreement, keeping
from model_server.tier.agreement import BLOCKS, WRITERS, Alone, Writer
from model_server.tier.keeping import Bounds, clock, keep, look

MIB = 1 << 20
LIMIT = 4 * MIB
BASE = "qwen_0123456789ab"
HOUR_NS = 3600 * 10**9


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    found = Writer(tmp_path, BASE)
    found._asked = float("-inf")
    yield found
    found.close()


def bounds(limit: int = LIMIT, free: float = 0, young_s: float = 0) -> Bounds:
    return Bounds(limit, free, young_s)


def block(directory: Path, name: str, size: int = 64 * 1024, base: str = BASE, age_s: float = 0) -> Path:
    """A file where vLLM puts one."""
    path = directory / BLOCKS / f"{base}_r0" / name[:3] / f"{name[3:5]}_g0" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    now = path.stat().st_mtime - age_s
    os.utime(path, (now, now))
    return path


def passes(directory: Path, given: Bounds, later_s: float = 1) -> keeping.Found:
    return keep(directory, given, clock(directory) + int(later_s * 1e9))


def disk(directory: Path) -> int:
    files, folders = look(directory)
    return sum(file.size for file in files) + folders * agreement.PAGE


def test_nothing_is_begun_before_the_keeper_has_looked(tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_ASK_S", -1)
    assert not writer.may_begin(4096)
    passes(tmp_path, bounds())
    assert writer.may_begin(4096)
    assert writer.refused == 1


def test_what_was_used_longest_ago_goes_first_and_low_is_reached(tmp_path: Path, writer: Writer) -> None:
    paths = [block(tmp_path, f"{number:016x}.bin", MIB // 8, age_s=1000 - number) for number in range(32)]
    os.utime(paths[0])
    found = passes(tmp_path, bounds())
    kept = [path for path in paths if path.exists()]
    gone = len(paths) - len(kept)
    assert kept == [paths[0], *paths[gone + 1 :]], "the first was read just now"
    assert found.removed == {"limit": gone} and found.removed_bytes == gone * MIB // 8
    assert disk(tmp_path) <= LIMIT * keeping.LOW < disk(tmp_path) + 2 * MIB // 8
    assert found.bytes == disk(tmp_path) + int(LIMIT * keeping.AHEAD) <= LIMIT
    assert passes(tmp_path, bounds()).removed == {}


def test_a_model_that_no_engine_has_any_more_goes_first(tmp_path: Path, writer: Writer) -> None:
    old = [block(tmp_path, f"{number:016x}.bin", MIB // 4, age_s=1000) for number in range(8)]
    other = [block(tmp_path, f"{number:016x}.bin", MIB // 4, base="gone_ba9876543210") for number in range(8)]
    configurations = [tmp_path / BLOCKS / base / "config.json" for base in (BASE, "gone_ba9876543210")]
    for each in configurations:
        each.parent.mkdir()
        each.write_text("{}")
    assert passes(tmp_path, bounds()).removed == {"orphan": 4}
    assert all(path.exists() for path in old) and sum(path.exists() for path in other) == 4
    passes(tmp_path, bounds(2 * MIB))
    assert [each.exists() for each in configurations] == [True, False]


def test_without_an_engine_no_model_is_taken_for_an_orphan(tmp_path: Path) -> None:
    block(tmp_path, f"{1:016x}.bin", 2 * MIB, age_s=100)
    young = block(tmp_path, f"{2:016x}.bin", 2 * MIB, base="other_ba9876543210")
    assert passes(tmp_path, bounds()).removed == {"limit": 1}
    assert young.exists()


def test_what_is_young_stays_and_writers_wait(tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_ASK_S", -1)
    paths = [block(tmp_path, f"{number:016x}.bin", MIB // 4) for number in range(15)]
    found = passes(tmp_path, bounds(young_s=60), later_s=59)
    assert found.removed == {} and all(path.exists() for path in paths)
    assert not writer.may_begin(MIB // 2)
    assert passes(tmp_path, bounds(young_s=60), later_s=61).removed["limit"]
    assert writer.may_begin(MIB // 8)


def test_half_written_files_go_when_nobody_writes_them(tmp_path: Path) -> None:
    left = block(tmp_path, f"{1:016x}.bin_77.tmp", age_s=10)
    first = Writer(tmp_path, BASE)
    written = block(tmp_path, f"{2:016x}.bin_78.tmp")
    second = Writer(tmp_path, BASE)
    assert passes(tmp_path, bounds(8 * 4096)).removed == {"left": 1}
    assert not left.exists() and written.exists(), "over the limit, too"
    first.close()
    second.close()
    assert passes(tmp_path, bounds()).removed == {"left": 1}
    assert list((tmp_path / WRITERS).glob("*.done")) == []


def test_others_on_the_disk_leave_less(tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        block(tmp_path, f"{number:016x}.bin", MIB // 4, age_s=100 - number)
    real = os.statvfs(tmp_path)

    class Disk:
        f_bavail, f_blocks, f_frsize = 3 * MIB // real.f_frsize, 40 * MIB // real.f_frsize, real.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda _: Disk)
    found = passes(tmp_path, bounds(free=0.1))
    assert found.limit < 3 * MIB and found.removed["disk"] and disk(tmp_path) <= found.limit
    assert found.bytes <= found.limit


def test_no_link_is_followed_and_empty_directories_go(tmp_path: Path, writer: Writer) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    mine = outside / "mine"
    mine.write_bytes(bytes(8 * MIB))
    tier = tmp_path / "tier"
    link = block(tier, f"{1:016x}.bin", age_s=50)
    link.unlink()
    link.symlink_to(mine)
    (tier / BLOCKS / "away").symlink_to(outside)
    found = passes(tier, bounds(MIB), later_s=100)
    assert mine.exists() and found.bytes < MIB
    link.unlink()
    passes(tier, bounds(MIB), later_s=100)
    assert list((tier / BLOCKS).iterdir()) == [tier / BLOCKS / "away"]


def test_a_writer_that_waits_keeps_nobody_from_writing(tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_ASK_S", -1)
    busy = Writer(tmp_path, BASE)
    written = 0
    for number in range(400):
        found = passes(tmp_path, bounds())
        assert found.bytes <= LIMIT
        while busy.may_begin(32 * 1024):
            block(tmp_path, f"{number:08x}{written:08x}.bin", 32 * 1024)
            busy.end(32 * 1024)
            written += 1
        if written > 400:
            break
    assert written > 400, "three times the limit"
    assert writer.may_begin(32 * 1024)
    busy.close()


def test_one_keeper_is_at_work(tmp_path: Path) -> None:
    first, second = Alone(tmp_path), Alone(tmp_path)
    assert (first.take(), second.take(), first.take()) == (True, False, True)
    os.close(first._file)
    assert second.take()


class Tier(RuleBasedStateMachine):
    """Writers that begin, write, are killed, and a keeper that looks whenever it comes to it: never above the limit."""

    alive: Bundle[Writer] = Bundle("alive")

    @initialize()
    def begin(self) -> None:
        self._holder = TemporaryDirectory()
        self.path, self.open, self.number = Path(self._holder.name), {}, 0
        Writer(self.path, BASE).close()

    @rule(target=alive)
    def starts(self) -> Writer:
        found = Writer(self.path, BASE)
        self.open[found] = []
        return found

    @rule(writer=alive, size=st.integers(1, MIB // 4), times=st.integers(1, 20))
    def writes(self, writer: Writer, size: int, times: int) -> None:
        writer._asked = float("-inf")
        for _ in range(times):
            if writer.may_begin(size):
                self.number += 1
                self.open[writer].append((block(self.path, f"{self.number * 7919:016x}.bin_1.tmp", size), size))

    @rule(writer=alive, part=st.integers(0, 20))
    def ends(self, writer: Writer, part: int) -> None:
        for path, size in self.open[writer][:part]:
            path.rename(path.with_name(path.name.removesuffix("_1.tmp")))
            writer.end(size)
        del self.open[writer][:part]

    @rule(writer=consumes(alive))
    def is_killed(self, writer: Writer) -> None:
        writer.close()
        del self.open[writer]

    @rule(young_s=st.sampled_from([0, 60]))
    def is_looked_at(self, young_s: float) -> None:
        begun = [path for files in self.open.values() for path, _ in files]
        found = passes(self.path, bounds(young_s=young_s), later_s=5)
        assert found.bytes <= LIMIT
        assert all(path.exists() for path in begun), "what a living writer writes stays"

    @invariant()
    def is_within_its_limit(self) -> None:
        if hasattr(self, "path"):
            assert disk(self.path) <= LIMIT

    def teardown(self) -> None:
        for writer in getattr(self, "open", {}):
            writer.close()
        if hasattr(self, "_holder"):
            self._holder.cleanup()


TestTier = Tier.TestCase
TestTier.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
