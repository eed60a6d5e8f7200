"""`python -m model_server.tier.keeper`: bound the tier's directory until SIGTERM, and say how it is at /metrics.

It holds nothing that a restart would lose. Of several with one directory, one is at work, and another takes over when that one ends.
"""

import errno
import logging
import signal
import sys
import threading
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from model_server.settings import Environment, SettingsError
from model_server.tier import keeping
from model_server.tier.agreement import Alone

log = logging.getLogger("model_server.tier")
_PACE = 10
"""A pass may take a tenth of the time: a directory with many files is looked at less often."""


class Settings(Environment):
    """Variables `KEEPER_…`."""

    model_config = SettingsConfigDict(env_prefix="KEEPER_")

    directory: Path
    """The tier's directory."""
    limit_bytes: int = Field(ge=1 << 20)
    """What it may take."""
    free_bytes: int = Field(default=0, ge=0)
    """What stays free of its file system; files go for it even below the limit."""
    young_s: float = Field(default=keeping.YOUNG_S, ge=0)
    """Seconds for which a new file stays."""
    period_s: float = Field(default=1.0, gt=0)
    """Seconds between two passes, at least."""
    host: str = "::"
    """Where /metrics is."""
    port: int = Field(default=9466, ge=0, le=65535)


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"cache_tier_{name}", text, registry=registry)

        self.bytes = gauge("bytes", "What the tier takes of its disk, with what may be added until the next look")
        self.limit = gauge("limit_bytes", "What it may take; less than was set where others fill the disk")
        self.files = gauge("files", "Its files")
        self.oldest = gauge("oldest_seconds", "Since the file was used that was used longest ago")
        self.writers = gauge("writers", "Engines that write into it")
        self.active = gauge("keeper_active", "Whether this keeper is the one at work")
        self.failing = gauge("keeper_failing", "Whether its last look failed, so that engines write nothing more")
        self.look = gauge("look_seconds", "Time of its last look")
        self.removed = Counter("cache_tier_removed_files", "Files that went, by why", ["reason"], registry=registry)
        self.removed_bytes = Counter("cache_tier_removed_bytes", "Their bytes", registry=registry)

    def note(self, found: keeping.Found, now_ns: int) -> None:
        self.bytes.set(found.bytes)
        self.limit.set(found.limit)
        self.files.set(found.files)
        self.oldest.set((now_ns - found.oldest_ns) / 1e9 if found.oldest_ns else 0)
        self.writers.set(found.writers)
        self.removed_bytes.inc(found.removed_bytes)
        for reason, count in found.removed.items():
            self.removed.labels(reason).inc(count)


def look(settings: Settings, alone: Alone, metrics: Metrics) -> float:
    """One pass; its time in seconds. What a disk does wrong is said, and tried again."""
    began = time.monotonic()
    try:
        metrics.active.set(float(alone.take()))
        if alone.held:
            now = keeping.clock(settings.directory)
            bounds = keeping.Bounds(settings.limit_bytes, settings.free_bytes, settings.young_s)
            metrics.note(keeping.keep(settings.directory, bounds, now), now)
        metrics.failing.set(0)
    except OSError as error:
        advice = "; mount it with locks" if error.errno == errno.ENOLCK else "; see the volume"
        log.error("%s: got %s, want a directory to read and write%s", settings.directory, error, advice)
        metrics.failing.set(1)
    metrics.look.set(time.monotonic() - began)
    return time.monotonic() - began


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = Settings.read()
        alone, registry = Alone(settings.directory), CollectorRegistry()
        start_http_server(settings.port, addr=settings.host, registry=registry)
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    metrics = Metrics(registry)
    while not stop.is_set():
        took = look(settings, alone, metrics)
        stop.wait(max(settings.period_s, took * _PACE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
