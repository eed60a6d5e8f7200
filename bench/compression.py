"""Whether the state of prompts (KV cache) gets smaller by compressing it, and how long that takes beside a disk. Writes
bench/results/compression.json.

The state is that of a real model, SmolLM2-135M, after it has read pages of this repository: llama.cpp's own file of a slot, with keys and
values of 16 bits, as model servers keep it. zstd and lz4 are Debian's programs. The disk is read and written past the page cache.

A minute or two, beside nothing else:
    python -m bench.compression
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

from bench.conditions import beside, keep
from bench.processes import end_with_us
from images import embedded
from model_sync import gguf
from tests.service.conftest import start_model_server
from tests.service.processes import ROOT

CONTEXT = 2048
MODEL = "smollm2:135m"
PROGRAMS = {"lz4": ["lz4", "-1", "-c"], "zstd -1": ["zstd", "-1", "-c"], "zstd -9": ["zstd", "-9", "-c"]}
BLOCK = 4 << 20
AT_LEAST = 256 << 20
"""Bytes that the disk is measured with."""
ROUNDS = 3


def state(work: Path) -> Path:
    """A slot's file after a prompt that fills most of the context."""
    [weights] = embedded.default_model().values()
    gguf.add(MODEL, weights, work / "models")
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "gateway.md").read_text()
    with ExitStack() as stack:
        kept = {"KEPT_DIR": str(work / "kept"), "KEPT_MIB": "1024", "DRAIN_DELAY_S": "0", "CONTEXT_LENGTH": str(CONTEXT), "PARALLEL": "1"}
        server = start_model_server(stack, work / "models", work, MODEL, "/ready", None, **kept)
        body = {"model": MODEL, "messages": [{"role": "user", "content": text[: CONTEXT * 2]}], "max_tokens": 1}
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=600, trust_env=False).raise_for_status()
        server.process.send_signal(signal.SIGTERM)
        server.ended()
    [path] = (work / "kept").glob("*.slot")
    return path


def compressed(path: Path, argv: list[str]) -> dict[str, float]:
    """Part of its size that is left, and bytes of the state a second, the best of some rounds."""
    size, seconds, unpacked, left = path.stat().st_size, float("inf"), float("inf"), 0
    for _ in range(ROUNDS):
        began = time.monotonic()
        packed = subprocess.run([*argv, path], check=True, capture_output=True).stdout
        seconds = min(seconds, time.monotonic() - began)
        began = time.monotonic()
        whole = subprocess.run([argv[0], "-d", "-c"], input=packed, check=True, capture_output=True).stdout
        unpacked = min(unpacked, time.monotonic() - began)
        assert len(whole) == size  # noqa: S101
        left = len(packed)
    return {
        "size": round(left / size, 3),
        "pack_mb_per_s": round(size / seconds / 1e6),
        "unpack_mb_per_s": round(size / unpacked / 1e6),
    }


def disk(work: Path) -> dict[str, int]:
    """Megabytes a second, of a file that the page cache has no part in."""
    path = work / "disk"
    argv = ["dd", f"bs={BLOCK}", f"count={AT_LEAST // BLOCK}", "status=none"]
    seconds: dict[str, float] = {}
    for name, more in {
        "write": ["if=/dev/zero", f"of={path}", "oflag=direct"],
        "read": [f"if={path}", "of=/dev/null", "iflag=direct"],
    }.items():
        began = time.monotonic()
        subprocess.run([*argv, *more], check=True)
        seconds[name] = time.monotonic() - began
    path.unlink()
    return {f"{name}_mb_per_s": round(AT_LEAST / each / 1e6) for name, each in seconds.items()}


def version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return next(iter(re.findall(r"[0-9]+\.[0-9.]+[0-9]", said)), said.strip())


def main() -> int:
    end_with_us()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        path = state(work)
        results: dict[str, Any] = {"state_bytes": path.stat().st_size, "disk": disk(work)}
        results["programs"] = {name: compressed(path, argv) for name, argv in PROGRAMS.items()}
    # It pays where what is saved of the disk's time is more than the time that it takes, on the way there and back.
    reads = results["disk"]["read_mb_per_s"]
    results["wins_at_reading"] = {
        name: 1 / found["unpack_mb_per_s"] + found["size"] / reads < 1 / reads for name, found in results["programs"].items()
    }
    versions = {"xllamacpp": metadata.version("xllamacpp"), **{name: version(name) for name in ("lz4", "zstd")}}
    keep("compression", beside("python -m bench.compression", load_before, versions) | {"results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
