"""Which line of what an engine wrote says why it ended."""

import asyncio
from pathlib import Path

import pytest

from model_server.words import LastWords, leave

VLLM = """(APIServer pid=1) INFO 11-28 no error so far
(APIServer pid=1) WARNING 11-28 04:12:25 [system_utils.py:255] This can cause errors like `OSError: [Errno 24] Too many open files`.
(EngineCore pid=367) ERROR 11-28 05:56:57 [core.py:1346] EngineCore failed to start.
(EngineCore pid=367) ERROR 11-28 05:56:57 [core.py:1346] Traceback (most recent call last):
(EngineCore pid=367) ERROR 11-28 05:56:57 [core.py:1346] ValueError: No available memory for the cache blocks.
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
"""In the form of vLLM's own issue 53013."""
LLAMA = "0.00.004.262 E read: string length 5 exceeds maximum 1\n0.00.004.976 Traceback (most recent call last):\nRuntimeError: Failed to init.\n"


TOO_LONG = """(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (65536) is greater than the derived max_model_len (max_position_embeddings=8192.0).
"""
"""What vLLM 0.32.0 said of a context that its model was not made for."""


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
        (TOO_LONG, TOO_LONG.splitlines()[1].strip()),
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
