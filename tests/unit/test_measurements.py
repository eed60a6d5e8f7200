"""What measurements of engines start ends with them, and an engine that fails costs the others nothing."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import conditions
from bench.engines import FULL, in_turns, middle, ratios
from bench.processes import NotReady, wait_for
from tests.service.processes import ROOT, free_port

PROGRAM = """
import subprocess, sys, time
from bench.processes import all_ended, end_with_us
end_with_us()
with all_ended():
    # As the workers of an engine do: of a session of its own, and its parent ends before it.
    subprocess.run(["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"], check=True)
    time.sleep(float(sys.argv[1]))
"""


def is_alive(pid: int) -> bool:
    """Also one that nobody waited for."""
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("told", [None, signal.SIGTERM, signal.SIGINT])
def test_what_lost_its_parent_ends_with_the_measurement(told: signal.Signals | None) -> None:
    argv = [sys.executable, "-c", PROGRAM, "600" if told else "0"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        if told:
            assert is_alive(orphan)
            process.send_signal(told)
        assert (process.wait(60) == 0) is (told is None)
    assert not is_alive(orphan)


def test_a_wait_says_what_it_waited_for_and_what_was_said(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("no such model\n")
    url = f"http://127.0.0.1:{free_port()}/health"
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            with pytest.raises(NotReady, match=r"/health: got no 200 for 0 s, want an answer; its process said:\nno such model"):
                wait_for(url, process, tmp_path / "log", 0)
        finally:
            process.kill()
    with pytest.raises(NotReady, match="got the end of its process with -9"):
        wait_for(url, process, tmp_path / "log")


def test_an_engine_that_does_not_start_has_its_error_and_one_round(tmp_path: Path) -> None:
    tried: list[str] = []

    def late(work: Path) -> Any:
        tried.append(work.name)
        raise NotReady("http://127.0.0.1:1/health: got no 200 for 600 s")

    def refused(work: Path) -> Any:
        tried.append(work.name)
        raise FileNotFoundError(2, "No such file", "vllm")

    heard: list[set[str]] = []
    found = in_turns(
        {"llama.cpp": late, "model server, vllm": refused}, FULL, tmp_path, lambda so_far: heard.append({*filter(so_far.get, so_far)})
    )
    assert heard == [{"llama.cpp"}, {"llama.cpp", "model server, vllm"}]
    assert tried == ["llama.cpp-0", "model-server-vllm-0"]
    results = {name: middle(rounds) for name, rounds in found.items()}
    assert results["llama.cpp"] == {"error": "NotReady: http://127.0.0.1:1/health: got no 200 for 600 s"}
    assert results["model server, vllm"]["error"].startswith("FileNotFoundError: ")
    assert ratios(results | {"vllm": {"1": {"tokens_a_second": 1.0}}}) == {}


def test_what_a_long_run_found_so_far_is_there_until_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_result", lambda name: tmp_path / f"{name}.json")
    conditions.keep_so_far("thing", {"a": 1})
    conditions.keep("thing", {"a": 1}, whole=False)
    assert {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()} == {"thing.partial.json": {"a": 1}}
    conditions.keep("thing", {"a": 2})
    assert {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()} == {"thing.json": {"a": 2}}


def test_the_middle_of_rounds_is_that_of_each_figure() -> None:
    rounds = [{"1": {"tokens_a_second": each}, "memory_mib": 10 - each} for each in (3, 1, 2)]
    assert middle(rounds) == {"1": {"tokens_a_second": 2}, "memory_mib": 8}
    assert ratios({"model server, vllm": middle(rounds), "vllm": {"1": {"tokens_a_second": 4}}}) == {"vllm": {"1": 0.5}}
