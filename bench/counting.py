"""What the API server costs on the way to Ollama: the same requests to it and through us, in turns. Writes bench/results/counting.json.

Loopback only, about a minute, beside nothing else:
    python -m bench.counting
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from bench.conditions import conditions, keep
from model_sync import gguf
from tests import tiny_gguf
from tests.service import ollama as ollama_process
from tests.service.processes import Service, free_port, running

KEY = "a-key-of-the-benchmark"
ROUNDS = 5
"""Each side is measured so often, in turns, so that both see the same machine."""
LATENCY_REQUESTS = 40
THROUGHPUT_REQUESTS = 80
CLIENTS = 4
CONTEXT = 8192
SHORT: list[dict[str, str]] = [{"role": "user", "content": "Say it."}]
LONG: list[dict[str, str]] = [{"role": "user", "content": "x" * 6000}]
"""Over half of the context in bytes, so that the server has to count it."""


async def first_token(session: aiohttp.ClientSession, url: str, messages: list[dict[str, str]]) -> float:
    """Seconds to the first event of a stream, which is then read to its end."""
    body = {"model": "tiny:1", "messages": messages, "stream": True}
    started = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        await response.content.readline()
        elapsed = time.perf_counter() - started
        await response.read()
    return elapsed


async def latencies(session: aiohttp.ClientSession, url: str, messages: list[dict[str, str]]) -> float:
    """Median in milliseconds, one request after the other."""
    return 1000 * statistics.median([await first_token(session, url, messages) for _ in range(LATENCY_REQUESTS)])


async def throughput(session: aiohttp.ClientSession, url: str) -> float:
    """Requests a second of CLIENTS at once."""
    left = iter(range(THROUGHPUT_REQUESTS))

    async def client() -> None:
        for _ in left:
            await first_token(session, url, SHORT)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return THROUGHPUT_REQUESTS / (time.perf_counter() - started)


async def measure(direct: str, gateway: str) -> dict[str, Any]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        measures: dict[str, Callable[[str], Awaitable[float]]] = {
            "first_token_ms": lambda url: latencies(session, url, SHORT),
            "first_token_counted_ms": lambda url: latencies(session, url, LONG),
            "requests_per_s": lambda url: throughput(session, url),
        }
        results: dict[str, Any] = {}
        for name, run in measures.items():
            await run(direct)
            await run(gateway)
            pairs = [(await run(direct), await run(gateway)) for _ in range(ROUNDS)]
            ratios = [ours / theirs for theirs, ours in pairs]
            results[name] = {
                "direct": round(statistics.median(theirs for theirs, _ in pairs), 2),
                "gateway": round(statistics.median(ours for _, ours in pairs), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            }
        return results


def servers(work: Path) -> dict[str, Any]:
    gguf.add(
        "tiny:1", tiny_gguf.make(work / "tiny.gguf", "Hello from the tiny model, with a few words more.", context=CONTEXT), work / "models"
    )
    program = ollama_process.install(work)
    with ollama_process.running(program, work / "models", work, OLLAMA_CONTEXT_LENGTH=str(CONTEXT)) as ollama:
        ollama_process.load(ollama, "tiny:1")
        with running("api_server", port := free_port(), environment(work, ollama, port), work / "api-server.log") as api:
            return asyncio.run(measure(ollama.url, api.url))


def environment(work: Path, ollama: Service, port: int) -> dict[str, str]:
    keys = work / "keys"
    keys.write_text(KEY)
    route = {"url": ollama.url, "engine": "ollama", "context_length": CONTEXT, "max_in_flight": 64}
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "METRICS_PORT": str(free_port()), "KEYS_FILE": str(keys)}
    return {f"API_SERVER_{key}": value for key, value in {**settings, "ROUTES": json.dumps({"tiny:1": route})}.items()}


def main() -> int:
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        results = servers(Path(directory))
    said = conditions("python -m bench.counting")
    record = said | {
        "machine": said["machine"] | {"load_before": round(load_before, 1)},
        "clients": CLIENTS,
        "rounds": ROUNDS,
        "results": results,
    }
    keep("counting", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
