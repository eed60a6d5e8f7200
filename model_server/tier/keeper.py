"""`python -m model_server.tier.keeper`: bound the tier's directory until SIGTERM, and say in a file how it is; the model server shows that
at its /metrics.

It holds nothing that a restart would lose. Of several with one directory, one is at work, and another takes over when that one ends.
"""

import errno
import json
import logging
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

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
    limit_mib: int = Field(ge=1)
    """What it may take."""
    free_part: float = Field(default=0.12, ge=0, lt=1)
    """Part of its file system that stays free; files go for it even below the limit. The kubelet evicts pods below a tenth
    (nodefs.available)."""
    young_s: float = Field(default=keeping.YOUNG_S, ge=0)
    """Seconds for which a new file stays."""
    period_s: float = Field(default=1.0, gt=0)
    """Seconds between two passes, at least."""
    state_file: Path
    """Where it says how it is."""


class State:
    """What is said, since this process began."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._removed: Counter[str] = Counter()
        self._removed_bytes = 0
        self._gauges: dict[str, float] = {"keeper_active": 0, "keeper_failing": 0}

    def note(self, found: keeping.Found, now_ns: int) -> None:
        self._removed.update(found.removed)
        self._removed_bytes += found.removed_bytes
        self._gauges |= {
            "bytes": found.bytes,
            "limit_bytes": found.limit,
            "files": found.files,
            "oldest_seconds": (now_ns - found.oldest_ns) / 1e9 if found.oldest_ns else 0.0,
            "writers": found.writers,
        }

    def say(self, **gauges: float) -> None:
        """Raises OSError."""
        self._gauges |= gauges
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(json.dumps({"gauges": self._gauges, "removed_files": self._removed, "removed_bytes": self._removed_bytes}))
        new.replace(self._path)


def look(settings: Settings, alone: Alone, state: State) -> float:
    """One pass; its time in seconds. What a disk does wrong is said, and tried again."""
    began, failing = time.monotonic(), False
    try:
        if alone.take():
            now = keeping.clock(settings.directory)
            bounds = keeping.Bounds(settings.limit_mib * 2**20, settings.free_part, settings.young_s)
            state.note(keeping.keep(settings.directory, bounds, now), now)
    except OSError as error:
        failing = True
        advice = "; mount it with locks" if error.errno == errno.ENOLCK else "; see the volume"
        log.error("%s: got %s, want a directory to read and write%s", settings.directory, error, advice)
    took = time.monotonic() - began
    try:
        state.say(keeper_active=float(alone.held), keeper_failing=float(failing), look_seconds=took)
    except OSError as error:
        log.error("%s: got %s, want to say there how the tier is", settings.state_file, error)
    return took


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = Settings.read()
        logging.getLogger().setLevel(settings.log_level.upper())
        alone = Alone(settings.directory)
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = State(settings.state_file)
    while not stop.is_set():
        took = look(settings, alone, state)
        stop.wait(max(settings.period_s, took * _PACE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
