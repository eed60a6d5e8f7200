"""Ollama and our agent beside it: a model on the GPU, one that has none, and one whose neighbour took the memory."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.gpu import shapes
from bench.gpu.engine import at_once
from bench.gpu.machine import environment, memory, used_bytes, wait_for
from bench.processes import started
from model_sync import gguf
from tests.service.processes import ROOT, free_port


def fleet(work: Path, binary: Path, ollama: Path) -> Iterator[tuple[str, Any]]:
    """Ollama and our agent beside it: a model on the GPU, one that has none, and one whose neighbour took the memory."""
    shape, name, context, slots = shapes.DENSE_8B, "dense:8b", 8192, 4
    path, store = shapes.make(work / "dense.gguf", shape), work / "fleet"
    gguf.add(name, path, store, link=True)
    weights = path.stat().st_size
    models = [{"name": name, "context_length": context, "size": weights}]
    (store / "catalog.json").write_text(json.dumps({"version": 1, "models": models}))
    for program, here in ((ollama, work / "bin" / "ollama"), (binary, work / "lib" / "ollama" / "llama-server")):
        here.parent.mkdir(parents=True)
        shutil.copy(program, here)
    settings = {"OLLAMA_MODELS": store, "OLLAMA_CONTEXT_LENGTH": context, "OLLAMA_NUM_PARALLEL": slots, "OLLAMA_KEEP_ALIVE": -1}
    before = used_bytes()
    with replica(work, store, settings) as (url, control):
        yield "on_the_gpu", {**settled(url, control), "memory": memory(before, weights, shape, context * slots)}
        yield "chats", {str(chats): at_once(url, name, chats, f"f{chats}") for chats in (1, slots)}
    with replica(work, store, settings | {"CUDA_VISIBLE_DEVICES": ""}) as (url, control):
        yield "no_gpu", settled(url, control)
    with started([sys.executable, "-c", _HOG], environment(), work):
        time.sleep(15)
        taken = used_bytes()
        with replica(work, store, settings) as (url, control):
            yield "neighbour_took_the_memory", {"used_before": taken, **settled(url, control)}


_HOG = """
import time, torch
held = torch.empty(torch.cuda.mem_get_info()[0] - 3 * 2**30, dtype=torch.uint8, device="cuda")
time.sleep(600)
"""
"""Leaves 3 GiB of the GPU."""


def settled(url: str, control: str) -> dict[str, Any]:
    """What the replica says once it is ready, or knows that its model is off the GPU; what Ollama says of it; seconds until then."""
    begun = time.monotonic()
    while True:
        answer = httpx.get(f"{control}/ready", timeout=10, trust_env=False)
        took = time.monotonic() - begun
        if answer.status_code == 200 or "on the GPU" in answer.text or took > 75:
            loaded = httpx.get(f"{url}/api/ps", timeout=10, trust_env=False).json()["models"]
            told = [{key: model[key] for key in ("size", "size_vram", "context_length")} for model in loaded]
            return {"s": took, "ready": answer.status_code, "said": answer.json()["status"], "ollama": told}
        time.sleep(0.2)


@contextmanager
def replica(work: Path, store: Path, settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Addresses of Ollama, and of what the kubelet asks its agent."""
    port, public, control = free_port(), free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    agent = environment(
        OLLAMA_AGENT_HOST="127.0.0.1",
        OLLAMA_AGENT_PORT=public,
        OLLAMA_AGENT_CONTROL_PORT=control,
        OLLAMA_AGENT_OLLAMA_URL=url,
        OLLAMA_AGENT_CATALOG=store / "catalog.json",
        OLLAMA_AGENT_STORE=store,
        OLLAMA_AGENT_GPU="true",
    )
    with started([str(work / "bin" / "ollama"), "serve"], environment(OLLAMA_HOST=url, OLLAMA_NO_CLOUD=1, **settings), work):
        wait_for(f"{url}/api/version", 60)
        with started([sys.executable, "-m", "ollama_agent"], agent, work, cwd=ROOT):
            wait_for(f"http://127.0.0.1:{control}/health", 30)
            yield url, f"http://127.0.0.1:{control}"
    for _ in range(100):
        if subprocess.run(["pgrep", "-f", str(work / "lib")], capture_output=True).returncode:
            break
        time.sleep(0.1)
