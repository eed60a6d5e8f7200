"""The cache between processes: a wait says for whom, and emptying it harms nobody who uses it."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devcluster import cache, clean
from devcluster.cache import locked
from infra import ROOT


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "modelfleet"


@contextmanager
def another(program: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has run `program` and then waits for its end."""
    code = f"from devcluster import cache\nfrom pathlib import Path\n{program}\nprint('ready', flush=True)\ninput()"
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.communicate("\n")


def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("got no such thing in 10 s")


def test_a_wait_names_the_process_at_once_and_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "SAY_EVERY_S", 0.5)
    said: list[str] = []
    monkeypatch.setattr(cache, "say", said.append)
    entered = threading.Event()

    def wait() -> None:
        with locked(root / ".lock", "toolchain"):
            entered.set()

    with another(f"lock = cache.locked(Path({str(root / '.lock')!r}), 'x'); lock.__enter__()") as process:
        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: len(said) >= 3)
        assert not entered.is_set()
    thread.join(10)
    assert entered.is_set()
    assert said[0].startswith(f"toolchain: waits for process {process.pid} ({sys.executable}")
    assert re.search(r", \d s so far$", said[2])


def test_a_wait_for_oneself_is_said_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(cache, "say", said.append)
    with locked(root / ".lock", "images: base"):
        thread = threading.Thread(target=lambda: locked(root / ".lock", "images: base").__enter__())
        thread.start()
        until(lambda: bool(said))
    thread.join(10)
    assert said == ["images: base: waits for another part of this command"]


def test_a_lock_file_that_was_removed_keeps_nobody_out_and_lets_nobody_in_twice(root: Path) -> None:
    path = root / ".lock"
    with locked(path, "x"):
        path.unlink()
        with locked(path, "x"):
            assert path.exists()


def fill(root: Path) -> None:
    for name in ("tools/etcd-1", "images", "pulumi"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_bytes(b"x" * 1_000_000)
    (root / "tools" / "bin").mkdir()
    (root / "tools" / "bin" / "file").hardlink_to(root / "tools" / "etcd-1" / "file")


def test_it_says_what_it_frees_and_frees_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(root)
    assert clean.main(["--yes"]) == 0
    said = capsys.readouterr().err
    assert re.search(rf" 1 MB  {re.escape(str(root))}/tools  \(built tools\)", said), "a file with two names is counted once"
    assert "freed 3 MB" in said
    assert list(root.iterdir()) == []
    assert clean.main([]) == 0, "with nothing to free there is nothing to ask"
    assert "nothing to free" in capsys.readouterr().err


def test_without_a_yes_nothing_goes(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fill(root)
    assert clean.main([]) == 1
    assert "got no terminal to ask on, want an answer; run make clean-cache YES=1" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert clean.main([]) == 1
    assert (root / "tools" / "etcd-1" / "file").exists()


def test_what_is_not_ours_stays(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(root)
    (root / "notes.txt").write_text("mine")
    elsewhere = tmp_path / "big-disk"
    elsewhere.mkdir()
    (elsewhere / "model.gguf").write_text("mine")
    (root / "models").symlink_to(elsewhere)
    assert clean.main(["--yes"]) == 0
    assert {path.name for path in root.iterdir()} == {"notes.txt", "models"}
    assert (elsewhere / "model.gguf").exists()
    assert f"leaves {root}/notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "use",
    [
        "cache.hold()",
        "file = (cache.cache_root() / 'images' / 'file').open()",
        "import mmap; m = mmap.mmap((f := (cache.cache_root() / 'images' / 'file').open('r+b')).fileno(), 0); f.close(); import os; "
        "os.closerange(3, 20)",
        "import os; os.chdir(cache.cache_root() / 'tools')",
        "lock = cache.locked(cache.cache_root() / 'tools' / '.lock', 'x'); lock.__enter__()",
    ],
)
def test_while_a_process_uses_it_nothing_goes(root: Path, capsys: pytest.CaptureFixture[str], use: str) -> None:
    fill(root)
    with another(use) as process:
        assert clean.main(["--yes"]) == 1
        said = capsys.readouterr().err
        assert re.search(rf"error: .*: got process {process.pid} \(.*\) using it, want nobody; run make down", said)
        assert (root / "tools" / "etcd-1" / "file").exists()
    assert clean.main(["--yes"]) == 0


def test_a_running_program_of_the_cache_keeps_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(root)
    program = root / "tools" / "etcd-1" / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "60"]) as process:
        try:
            until(lambda: Path(f"/proc/{process.pid}/exe").readlink() == program)
            assert clean.main(["--yes"]) == 1
        finally:
            process.kill()
    # A long command is cut.
    assert f"got process {process.pid} ({f'{program} 60'[:100]}) using it" in capsys.readouterr().err


def test_every_place_in_the_cache_is_known_to_it() -> None:
    found: set[str] = set()
    for path in [path for package in ("devcluster", "images", "infra", "tests") for path in (ROOT / package).rglob("*.py")]:
        found |= set(re.findall(r'cache_root\(\) / "([^"]+)"', path.read_text()))
    assert {"tools", "models", "debian", "pulumi"} <= found
    for name in found | {"try"}:
        assert any(re.fullmatch(pattern, name) for pattern in clean.OURS), name
