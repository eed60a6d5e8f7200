"""What the cache server and the Ollama servers say about themselves. Each read is bounded in time, and fails alone."""

import asyncio
import socket
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import redis.asyncio
import redis.exceptions
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_CACHE_GAUGES = {
    "used_memory": ("cache_used_memory_bytes", "Memory that the cache server uses"),
    "maxmemory": ("cache_max_memory_bytes", "Memory at which the cache server evicts"),
    "connected_clients": ("cache_connected_clients", "Open connections"),
}
_CACHE_COUNTERS = {
    "keyspace_hits": ("cache_keyspace_hits", "Look-ups that found a key"),
    "keyspace_misses": ("cache_keyspace_misses", "Look-ups that found none"),
    "evicted_keys": ("cache_evicted_keys", "Keys dropped for room"),
}


async def cache_metrics(client: "redis.asyncio.Redis", timeout_s: float) -> list[Metric]:
    """From INFO; only `cache_up 0` when it does not answer in time."""
    try:
        async with asyncio.timeout(timeout_s):
            info: dict[str, Any] = await client.info()
    except (redis.exceptions.RedisError, OSError, TimeoutError):
        return [GaugeMetricFamily("cache_up", "Whether the cache server answers", value=0)]
    families: list[Metric] = [GaugeMetricFamily("cache_up", "Whether the cache server answers", value=1)]
    families += [GaugeMetricFamily(name, text, value=info[key]) for key, (name, text) in _CACHE_GAUGES.items() if key in info]
    families += [CounterMetricFamily(name, text, value=info[key]) for key, (name, text) in _CACHE_COUNTERS.items() if key in info]
    return families


async def _addresses(url: str) -> list[str]:
    parts = urlsplit(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname or "", parts.port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [f"{host}:{parts.port}" for host in dict.fromkeys(str(info[4][0]) for info in found)]


async def _json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url) as response:
        response.raise_for_status()
        return await response.json(content_type=None)


async def ollama_metrics(session: aiohttp.ClientSession, urls: list[str], timeout_s: float) -> list[Metric]:
    """From /api/ps and /api/tags of every address behind every URL."""
    up = GaugeMetricFamily("ollama_up", "Whether the server answers", labels=["address"])
    available = GaugeMetricFamily("ollama_models_available", "Models in the server's store", labels=["address"])
    resident = GaugeMetricFamily("ollama_model_resident_bytes", "Memory of a loaded model", labels=["address", "model"])
    vram = GaugeMetricFamily("ollama_model_resident_vram_bytes", "Its part in GPU memory", labels=["address", "model"])
    context = GaugeMetricFamily("ollama_model_context_length", "Tokens that it was loaded for", labels=["address", "model"])

    async def one(address: str) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                tags, loaded = await asyncio.gather(
                    _json(session, f"http://{address}/api/tags"), _json(session, f"http://{address}/api/ps")
                )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            up.add_metric([address], 0)
            return
        up.add_metric([address], 1)
        available.add_metric([address], len(tags.get("models") or []))
        for model in loaded.get("models") or []:
            labels = [address, str(model.get("name", ""))]
            for family, key in ((resident, "size"), (vram, "size_vram"), (context, "context_length")):
                if key in model:
                    family.add_metric(labels, float(model[key]))

    resolved = await asyncio.gather(*(_addresses(url) for url in urls))
    await asyncio.gather(*(one(address) for addresses in resolved for address in addresses))
    return [up, available, resident, vram, context]
