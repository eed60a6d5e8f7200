"""What the cache server says about itself. The read is bounded in time, and fails alone."""

import asyncio
from typing import Any

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
