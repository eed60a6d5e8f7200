"""Which line of what an engine wrote says why it ended."""

import asyncio
from pathlib import Path

import pytest

from model_server.words import LastWords, leave

VLLM = """(APIServer pid=1) INFO 11-28 no error so far
(EngineCore pid=367) ERROR 11-28 05:56:57 [core.py:1346] EngineCore failed to start.
(EngineCore pid=367) ERROR 11-28 05:56:57 [core.py:1346] Traceback (most recent call last):
(EngineCore pid=367) ERROR 11-28 05:56:57 [core.py:1346] ValueError: No available memory for the cache blocks.
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
"""In the form of vLLM's own issue 53013."""
LLAMA = "0.00.004.262 E read: string length 5 exceeds maximum 1\n0.00.004.976 Traceback (most recent call last):\nRuntimeError: Failed to init.\n"


def heard(text: str) -> LastWords:
    async def follow() -> LastWords:
        stream = asyncio.StreamReader()
        stream.feed_data(text.encode())
        stream.feed_eof()
        words = LastWords()
        words.follow(stream)
        await words.end()
        return words

    return asyncio.run(follow())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (VLLM, "(EngineCore pid=367) ERROR 11-28 05:56:57 [core.py:1346] ValueError: No available memory for the cache blocks."),
        (LLAMA, "0.00.004.262 E read: string length 5 exceeds maximum 1"),
        ("loading\nCUDA error: out of memory\nbye\n", "CUDA error: out of memory"),
        ("loading\n\nKilled\n", "Killed"),
        ("", ""),
        ("x" * 40_000, "x" * 300),
        ("\xff\n", "\xff"),
    ],
)
def test_the_line_that_names_the_cause_is_taken(text: str, reason: str) -> None:
    assert heard(text).reason == reason


def test_a_kubelet_takes_all_that_is_left(tmp_path: Path) -> None:
    words = heard("".join(f"line {number} {'é' * 200}\n" for number in range(500)))
    leave(tmp_path / "log", words.lines, "engine: got it")
    kept = (tmp_path / "log").read_bytes()
    assert len(kept) == 4096
    assert kept.endswith("é\nengine: got it".encode())
    # A file that cannot be written ends nothing.
    leave(tmp_path / "absent" / "log", [], "x")
