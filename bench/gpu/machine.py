"""What the parts share: the card as nvidia-smi tells of it, and processes that are waited for."""

import os
import subprocess
import tempfile
import time
from contextlib import suppress

import httpx

from bench.gpu.shapes import Shape

GIB = 2**30
WORKSPACE = 1.5 * GIB
"""What the program's own arithmetic (infra/program/settings/constraints.py) keeps for an engine, beside weights and KV."""


def smi(query: str) -> list[str]:
    argv = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "--id=0"]
    return [field.strip() for field in subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.split(",")]


def used_bytes() -> int:
    return int(smi("memory.used")[0]) * 2**20


def environment(**variables: object) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    return {**kept, "HOME": tempfile.gettempdir(), **{name: str(value) for name, value in variables.items()}}


def wait_for(url: str, limit_s: float, status: int = 200) -> tuple[float, str]:
    """Seconds until the address answered so, and the answer."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit_s:
        with suppress(httpx.HTTPError):
            answer = httpx.get(url, timeout=10, trust_env=False)
            if answer.status_code == status:
                return time.monotonic() - begun, answer.text
        time.sleep(0.05)
    raise TimeoutError(f"{url}: got no {status} for {limit_s:g} s, want one")


def memory(before: int, weights: int, shape: Shape, tokens: int) -> dict[str, float]:
    """Bytes on the GPU beside what the program's arithmetic asks for."""
    measured, asked = used_bytes() - before, weights + shape.kv_bytes_per_token * tokens + WORKSPACE
    return {"measured": measured, "asked": asked, "ratio": measured / asked, "kv": shape.kv_bytes_per_token * tokens, "weights": weights}
