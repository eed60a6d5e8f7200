"""What our API server costs beside nginx, vllm-router and LiteLLM, each in front of the same made-up model server. Writes
bench/results/gateway.json.

Loopback only, eight minutes, beside nothing else:
    python -m bench.gateway
A run with few requests, to see that it works, prints its figures and writes nothing:
    python -m bench.gateway small
"""

import asyncio
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load, proxies
from bench.conditions import beside, keep
from bench.load import Server
from bench.processes import allow_descriptors, cpu_s, end_with_us, memory_bytes, started, wait_for
from bench.proxies import Proxy
from tests.service.conftest import as_user, running_valkey
from tests.service.processes import ROOT, free_port

AIM = 2.5
"""CPU of ours, as a multiple of vllm-router's."""
AT_ONCE = 32
CHUNKS, PAUSE_MS = 64, 20
"""Of a stream whose CPU is measured: 50 tokens a second, so that each chunk comes by itself."""
LEVELS = (1, 64, 512)
"""Streams at once, beside which the first chunk is waited for."""
_SETTLE_S = 3.0


@dataclass(frozen=True)
class Sizes:
    """How much of everything a run does."""

    rounds: int
    """The proxies take turns, so that all see the same machine; the median of the rounds counts."""
    requests: int
    streams: int
    samples: int
    """First chunks a level."""
    idle: int
    """Streams that stay open."""
    limit_s: float
    """For the first chunks of one level, and three times as long for opening the idle streams."""
    slow: int = 8
    """LiteLLM gets so many times fewer requests: it needs a hundred times as long for each."""


FULL = Sizes(rounds=3, requests=2000, streams=160, samples=300, idle=5000, limit_s=20)
SMALL = Sizes(rounds=1, requests=64, streams=16, samples=20, idle=100, limit_s=5, slow=4)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def cpu(proxy: Proxy, request: bytes, count: int) -> dict[str, Any]:
    """CPU milliseconds of the proxy a request, AT_ONCE at a time."""
    before = cpu_s(proxy.pid)
    tally = asyncio.run(load.repeated(proxy.server, request, count, AT_ONCE))
    return {"ms": 1000 * (cpu_s(proxy.pid) - before) / max(1, tally.answered), "failed": tally.failed, "parts": tally.parts / count}


def cpu_in_turns(running: Sequence[Proxy], sizes: Sizes) -> dict[str, dict[str, Any]]:
    """For each proxy, of a request without a stream, and of a stream."""
    results: dict[str, dict[str, Any]] = {proxy.name: {} for proxy in running}
    for kind, count in (("request", sizes.requests), ("stream", sizes.streams)):
        rounds: dict[str, list[dict[str, Any]]] = {proxy.name: [] for proxy in running}
        # The first round is a warm-up: connections, caches, compiled templates.
        for _ in range(1 + sizes.rounds):
            for proxy in running:
                print(f"gateway: CPU of {proxy.name}, {kind}", file=sys.stderr, flush=True)
                request = load.document(proxy.server) if kind == "request" else load.stream(proxy.server, CHUNKS, PAUSE_MS)
                rounds[proxy.name].append(cpu(proxy, request, count // (sizes.slow if proxy.name == "litellm" else 1)))
        for name, all_of_them in rounds.items():
            found = [each["ms"] for each in all_of_them[1:]]
            spread = {"lowest": round(min(found), 3), "highest": round(max(found), 3)}
            failed = sum(each["failed"] for each in all_of_them)
            results[name][kind] = {"ms": round(statistics.median(found), 3), **spread, "failed": failed}
            if kind == "stream":
                results[name][kind]["chunks"] = round(all_of_them[-1]["parts"], 1)
    return results


async def recovered(server: Server) -> None:
    """Wait for one answer: what was overloaded by the measurement before gets a minute to come to itself."""
    await load.repeated(server, load.document(server), 1, 1)


def waits(server: Server, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Milliseconds to a stream's first chunk at each level: none where no chunk came in time."""
    results: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        print(f"gateway: first chunks at {server.url}, {level} streams", file=sys.stderr, flush=True)
        asyncio.run(recovered(server))
        seconds, others = asyncio.run(load.first_chunks(server, level, sizes.samples, sizes.limit_s))
        shares = (("p50_ms", 0.5), ("p99_ms", 0.99)) if seconds else ()
        figures = {name: round(1000 * percentile(seconds, share), 2) for name, share in shares}
        results[str(level)] = {**figures, "samples": len(seconds), "failed": others.failed}
    return results


def added(through: Mapping[str, Mapping[str, Any]], alone: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The waits through a proxy, each with what it is above that for the server alone."""
    results: dict[str, dict[str, Any]] = {}
    for level, found in through.items():
        beside = {f"added_{name}": round(found[name] - alone[level][name], 2) for name in ("p50_ms", "p99_ms") if name in found}
        results[level] = {**found, **beside}
    return results


async def idle_memory(proxy: Proxy, sizes: Sizes) -> dict[str, Any]:
    """KiB of the proxy's memory for each stream that is open and silent, and what it keeps of it afterwards."""
    print(f"gateway: idle streams of {proxy.name}", file=sys.stderr, flush=True)
    await recovered(proxy.server)
    before = memory_bytes(proxy.pid)
    async with load.idle(proxy.servers, sizes.idle, 3 * sizes.limit_s) as tally:
        await asyncio.sleep(_SETTLE_S)
        held = memory_bytes(proxy.pid)
    await asyncio.sleep(_SETTLE_S)
    after = memory_bytes(proxy.pid)
    mib = {name: round(each / 2**20, 1) for name, each in (("before_mib", before), ("with_mib", held), ("after_mib", after))}
    kib = round((held - before) / 1024 / tally.answered, 1) if tally.answered else None
    return {"asked": sizes.idle, "opened": tally.answered, "failed": tally.failed, **mib, "kib_a_stream": kib}


def measured(installed: Sequence[proxies.Installed], sizes: Sizes, work: Path) -> dict[str, Any]:
    """All figures of these proxies, in front of one server."""
    with ExitStack() as stack:
        port = free_port()
        server = Server(f"http://127.0.0.1:{port}")
        (work / "upstream").mkdir()
        argv = [sys.executable, "-m", "bench.upstream", str(port)]
        process = stack.enter_context(started(argv, {"PATH": os.environ["PATH"]}, work / "upstream", cwd=ROOT))
        wait_for(f"{server.url}/health", process, work / "upstream" / "log")
        running = [stack.enter_context(each.running(server.url, work)) for each in installed]
        cost = cpu_in_turns(running, sizes)
        alone = waits(server, sizes)
        results: dict[str, Any] = {"the server alone": {"first_chunk": alone}}
        for proxy in running:
            first = added(waits(proxy.server, sizes), alone)
            results[proxy.name] = {"cpu": cost[proxy.name], "first_chunk": first, "idle": asyncio.run(idle_memory(proxy, sizes))}
        return results


def ratios(results: Mapping[str, Any]) -> dict[str, Any]:
    """CPU of ours as a multiple of vllm-router's, beside the aim."""
    ours, theirs = results["api_server"]["cpu"], results["vllm-router"]["cpu"]
    found = {kind: round(ours[kind]["ms"] / theirs[kind]["ms"], 2) for kind in ours}
    return {"aim": AIM, **found, "met": all(each <= AIM for each in found.values())}


def main(arguments: Sequence[str]) -> int:
    sizes = SMALL if list(arguments) == ["small"] else FULL
    end_with_us()
    # A proxy has two for each stream, and for a while those of the streams before.
    allow_descriptors(2 * sizes.idle + 4000)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        # So that nginx, which runs as nobody, finds its own directory within.
        work.chmod(0o755)
        (cache := work / "cache").mkdir()
        port = free_port()
        agreement = as_user(f"redis://127.0.0.1:{port}/0", "api-server", cache)
        installed = [proxies.ours(work, agreement), proxies.nginx(work), proxies.vllm_router(work), proxies.litellm(work)]
        with running_valkey(cache, port):
            results = measured(installed, sizes, work)
    record = beside("python -m bench.gateway", load_before, {each.name: each.version for each in installed}) | {
        "sizes": {**vars(sizes), "at_once": AT_ONCE, "chunks": CHUNKS, "pause_ms": PAUSE_MS},
        "results": results,
        "ratio_to_vllm_router": ratios(results),
    }
    keep("gateway", record, whole=sizes is FULL)
    return 0 if not sum(each["failed"] for each in results["api_server"]["cpu"].values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
