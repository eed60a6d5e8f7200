"""The metric catalogue."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_server.endpoints import Api
from model_server.saved import Saved, Tokens

_TIER = {
    "bytes": "What the tier of files takes of its disk, with what may be added until the next look",
    "limit_bytes": "What it may take; less than was set where others fill the disk",
    "files": "Its files",
    "oldest_seconds": "Since the file was used that was used longest ago",
    "writers": "Engines that write into it",
    "keeper_active": "Whether this keeper is the one at work",
    "keeper_failing": "Whether its last look failed: then engines soon write nothing more",
    "look_seconds": "Time of its last look",
}
_PROMPT_MS = re.compile(rb'"prompt_ms":(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')
"""In llama.cpp's `timings`: how long the prompt was read. Below zero, or not a number, it is none."""
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    def __init__(self, context: int) -> None:
        """`context`: tokens of one request."""
        self.registry = CollectorRegistry()
        self._context, self._began, self._before = context, time.monotonic(), Tokens(0, 0, 0)
        registry = self.registry
        self.saved = Saved(registry)
        self.requests = Counter("model_server_requests", "Answered requests", ["status"], registry=registry)
        self.running = Gauge("model_server_running_requests", "Requests that are generated now", registry=registry)
        self.waiting = Gauge("model_server_waiting_requests", "Requests that wait for a slot", registry=registry)
        self.refused = Counter("model_server_refused_requests", "Requests refused because the queue was full", registry=registry)
        self.prompt_tokens = Counter("model_server_prompt_tokens", "Tokens read, without those that the engine held", registry=registry)
        self.generated_tokens = Counter("model_server_generated_tokens", "Tokens written", registry=registry)
        self.first_byte = Histogram(
            "model_server_time_to_first_byte_seconds", "From arrival to the first byte of the answer", buckets=_SECONDS, registry=registry
        )
        self.duration = Histogram("model_server_request_duration_seconds", "Whole requests", buckets=_SECONDS, registry=registry)
        self.cache = Counter("model_server_cache_lookups", "Look-ups by outcome: hit, miss, bypass", ["outcome"], registry=registry)
        self.engine_up = Gauge("model_server_engine_up", "Whether the engine has its model and lives", registry=registry)
        self.restored = Gauge("model_server_restored_tokens", "Tokens that a process of before had kept for this one", registry=registry)

    def reached(self, tokens: Tokens) -> None:
        """What an engine that counts by itself has read and written since it began."""
        before, self._before = self._before, tokens
        self.prompt_tokens.inc(max(0, tokens.read - before.read))
        self.generated_tokens.inc(max(0, tokens.written - before.written))
        self.saved.reuse(max(0, tokens.reused - before.reused))
        self.saved.came("host", max(0, tokens.host - before.host))
        self.saved.came("disk", max(0, tokens.disk - before.disk))
        reads, timed = tokens.reads - before.reads, tokens.timed - before.timed
        self.saved.read(timed, tokens.seconds - before.seconds, reads * (time.monotonic() - self._began), reads)

    def count(self, api: Api, body: bytes, took_s: float, first_s: float = 0.0) -> None:
        """Add the tokens that the engine counted: its `timings`, or else the API's `usage`. `body`: an answer, or both ends of a stream.
        `took_s`: from its place at the engine to its end. `first_s`: to its first bytes, where those come when the prompt has been read."""
        if b'"timings"' in body:
            read, reused, written = (_last(body, name) for name in ("prompt_n", "cache_n", "predicted_n"))
        elif api == "anthropic":
            read, reused, written = (_last(body, name) for name in ("input_tokens", "cache_read_input_tokens", "output_tokens"))
        else:
            # Of responses, or of embeddings; both count what was reused among what was read.
            reused, written = _last(body, "cached_tokens"), _last(body, "output_tokens")
            read = (_last(body, "input_tokens") or _last(body, "prompt_tokens")) - reused
        self.prompt_tokens.inc(read)
        self.saved.reuse(min(reused, self._context))
        self.generated_tokens.inc(written)
        timed = _PROMPT_MS.findall(body)
        self.saved.read(read, float(timed[-1]) / 1000 if timed else first_s, took_s)


class Tier(Collector):
    """What the keeper of vLLM's tier of files says in its file, for as long as it says something."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        try:
            said = json.loads(self._path.read_bytes())
            gauges: dict[str, float] = said["gauges"]
            removed: dict[str, int] = said["removed_files"]
            removed_bytes = float(said["removed_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        for name, text in _TIER.items():
            if name in gauges:
                yield GaugeMetricFamily(f"model_server_tier_{name}", text, value=gauges[name])
        files = CounterMetricFamily("model_server_tier_removed_files", "Files that went, by why", labels=["reason"])
        for reason, count in removed.items():
            files.add_metric([reason], count)
        yield files
        yield CounterMetricFamily("model_server_tier_removed_bytes", "Their bytes", value=removed_bytes)


def _last(body: bytes, name: str) -> int:
    """No text of a model can look like it: quotes within a JSON string are escaped."""
    found = re.findall(rb'"%s":(\d{1,15})\b' % name.encode(), body)
    return int(found[-1]) if found else 0
