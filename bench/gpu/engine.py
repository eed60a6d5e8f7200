"""A model of prod's shape in llama.cpp behind our model server: loading, memory, speed, and the turns of a conversation."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.gpu import shapes
from bench.gpu.exporter import compared
from bench.gpu.machine import GIB, environment, memory, used_bytes, wait_for
from bench.processes import started
from model_sync import gguf
from tests.service.processes import ROOT, free_port

CHATS, PROMPT, ANSWER = (1, 8, 32), 512, 128
CONVERSATION, TURN = 20_000, 200
"""Tokens."""


@contextmanager
def model_server(work: Path, binary: Path, store: Path, **variables: object) -> Iterator[tuple[str, str, float]]:
    """Its address, its engine's own address, and the seconds until it was ready."""
    port, log = free_port(), work / "log"
    log.unlink(missing_ok=True)
    env = environment(
        MODEL_SERVER_HOST="127.0.0.1",
        MODEL_SERVER_PORT=port,
        MODEL_SERVER_MODELS_DIR=store,
        MODEL_SERVER_LLAMA_SERVER=binary,
        MODEL_SERVER_MAX_QUEUE=64,
        **variables,
    )
    with started([sys.executable, "-m", "model_server"], env, work, cwd=ROOT):
        took, _ = wait_for(f"http://127.0.0.1:{port}/ready", 180)
        engine = log.read_text().partition("engine at ")[2].split()[0]
        yield f"http://127.0.0.1:{port}", engine, took
    for _ in range(100):
        if used_bytes() < GIB:
            break
        time.sleep(0.1)


async def generate(session: aiohttp.ClientSession, url: str, model: str, prompt: str, answer: int) -> dict[str, float]:
    """One streamed completion: seconds to the first token, and what the server counted. Random words are no chat."""
    body = {"model": model, "prompt": prompt, "max_tokens": answer, "temperature": 0, "stream": True}
    begun, first, usage = time.monotonic(), 0.0, {}
    async with session.post(f"{url}/v1/completions", json=body | {"stream_options": {"include_usage": True}}) as response:
        if response.status != 200:
            raise RuntimeError(f"{url}: got {response.status}, want 200; it said {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                first = first or (time.monotonic() - begun if event.get("choices") else 0.0)
                usage = event.get("usage") or usage
                if "error" in event:
                    raise RuntimeError(f"{url}: got {event['error']} after {time.monotonic() - begun:.2f} s, want an answer")
    if not usage:
        raise RuntimeError(f"{url}: got no usage after {time.monotonic() - begun:.2f} s, want it in the last event")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {"first_s": first, "prompt": usage["prompt_tokens"], "answer": usage["completion_tokens"], "cached": cached}


def at_once(url: str, model: str, chats: int, mark: str) -> dict[str, float]:
    """So many chats together, each with a prompt of its own."""

    async def run() -> list[dict[str, float]]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300), connector=aiohttp.TCPConnector(limit=0)) as session:
            prompts = [f"{mark}-{number} ".ljust(PROMPT, "x") for number in range(chats)]
            return await asyncio.gather(*(generate(session, url, model, each, ANSWER) for each in prompts))

    begun = time.monotonic()
    done = asyncio.run(run())
    took = time.monotonic() - begun
    first = statistics.median(each["first_s"] for each in done)
    return {"tokens_per_s": sum(each["answer"] for each in done) / took, "first_token_s": first, "answered": sum(e["answer"] for e in done)}


def speeds(ours: str, bare: str, model: str) -> dict[str, Any]:
    """Ours and the bare engine in turns, two rounds and a warm-up; the medians."""
    rows: dict[str, Any] = {}
    for chats in CHATS:
        rounds = [
            {name: at_once(url, model, chats, f"{name}{chats}.{number}") for name, url in (("model_server", ours), ("engine", bare))}
            for number in range(3)
        ][1:]
        row: dict[str, Any] = {
            name: {key: statistics.median(each[name][key] for each in rounds) for key in rounds[0][name]} for name in rounds[0]
        }
        row["ratio"] = row["model_server"]["tokens_per_s"] / row["engine"]["tokens_per_s"]
        rows[str(chats)] = row
    return rows


def turns(url: str, model: str, slots: int) -> dict[str, Any]:
    """First token of a conversation's turns: read anew, from its slot, and from the host's memory after others took every slot."""

    async def run() -> dict[str, Any]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:

            async def turn(prompt: str) -> dict[str, float]:
                return await generate(session, url, model, prompt, 4)

            def begun(mark: str) -> str:
                return f"{mark} ".ljust(CONVERSATION, mark[-1])

            first = begun("first-a")
            rows: dict[str, Any] = {"cold": await turn(first)}
            second = first + "m" * TURN
            rows["from_its_slot"] = await turn(second)
            for number in range(slots + 1):
                await turn(begun(f"other-{number}-{'bcdefghi'[number]}"))
            rows["from_host_memory"] = await turn(second + "n" * TURN)
            return rows

    rows = asyncio.run(run())
    for name in ("from_its_slot", "from_host_memory"):
        rows[name]["sooner_than_cold"] = rows["cold"]["first_s"] / rows[name]["first_s"]
    return rows


def engine(work: Path, binary: Path, scrape: str) -> Iterator[tuple[str, Any]]:
    """Of prod's own model, by its shape: speed, memory, the exporter beside it, loading, turns."""
    shape, name = shapes.CODER_30B, "coder:30b"
    path, store = shapes.make(work / "coder.gguf", shape), work / "store"
    weights = path.stat().st_size
    gguf.add(name, path, store, link=True)
    yield "bandwidth", bandwidth(path)
    drop(path)
    before = used_bytes()
    variables = {"MODEL_SERVER_MODEL": name, "MODEL_SERVER_CONTEXT_LENGTH": 4096, "MODEL_SERVER_PARALLEL": max(CHATS)}
    with model_server(work, binary, store, **variables) as (ours, bare, cold_s):
        yield "load_from_disk", {"s": cold_s, "bytes_per_s": weights / cold_s}
        yield "memory_32_slots_of_4096", memory(before, weights, shape, 4096 * max(CHATS))
        with (work / "load").open("w") as quiet:
            code = "import sys; from bench.gpu.engine import at_once\nwhile True: at_once(*sys.argv[1:3], 32, 'load')"
            busy = subprocess.Popen([sys.executable, "-c", code, bare, name], cwd=ROOT, stdout=quiet, stderr=quiet)
            time.sleep(3)
            yield "exporter_under_load", compared(scrape, 20)
            busy.kill()
            busy.wait()
        yield "chats", speeds(ours, bare, name)
    variables |= {"MODEL_SERVER_CONTEXT_LENGTH": 32768, "MODEL_SERVER_PARALLEL": 4, "MODEL_SERVER_PROMPT_CACHE_MIB": 32768}
    with model_server(work, binary, store, **variables) as (ours, _, warm_s):
        yield "load_from_page_cache", {"s": warm_s, "bytes_per_s": weights / warm_s}
        yield "memory_4_slots_of_32768", memory(before, weights, shape, 4 * 32768)
        yield "turns", turns(ours, name, 4)


def drop(path: Path) -> None:
    """The file leaves the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bandwidth(path: Path) -> dict[str, float]:
    """Limits of this machine in bytes a second: the disk, read cold, and the GPU's memory, copied (read and written counted)."""
    drop(path)
    begun, read = time.monotonic(), 0
    with path.open("rb", buffering=0) as file:
        while read < 4 * GIB and (piece := file.read(16 * 2**20)):
            read += len(piece)
    rows = {"disk": read / (time.monotonic() - begun)}
    done = subprocess.run([sys.executable, "-c", _COPY], capture_output=True, text=True, timeout=120)
    return rows | ({"gpu_memory": float(done.stdout)} if done.returncode == 0 else {})


_COPY = """
import time, torch
source = torch.empty(2**32, dtype=torch.uint8, device="cuda")
target = torch.empty_like(source)
target.copy_(source)
torch.cuda.synchronize()
begun = time.monotonic()
for _ in range(20):
    target.copy_(source)
torch.cuda.synchronize()
print(20 * 2 * 2**32 / (time.monotonic() - begun))
"""
