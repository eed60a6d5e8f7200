"""`python -m devcluster.supervisor NAME`: start again what dies of one cluster, and keep its logs short.

`up` starts it, `down` ends it first. It acts only while no command holds the cluster's lock, and ends by itself when the cluster is gone.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from devcluster import processes
from devcluster.cache import tried
from devcluster.layout import Cluster, ClusterError, RecordError, load, lock_file
from devcluster.processes import Process

NAME = "supervisor"
LOG_BYTES = 10 * 2**20
"""A log that is longer becomes the one old log of its component: 20 MiB a component at most."""
_LOOK_EVERY_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_HEALTHY_S = 60.0
"""A component that ran this long starts again without a pause the next time."""


def process(cluster: Cluster) -> Process:
    """The supervisor as one of the cluster's processes."""
    here = Path(__file__)
    argv = [sys.executable, "-m", "devcluster.supervisor", cluster.name]
    env = {"PYTHONPATH": str(here.parent.parent), "PYTHONDONTWRITEBYTECODE": "1", "XDG_STATE_HOME": str(cluster.state_dir.parents[2])}
    return Process(name=NAME, argv=argv, env=env, files=(here, here.with_name("processes.py"), here.with_name("layout.py")))


class Supervisor:
    """State between two looks: when each component was started here, and how long the next pause is."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self.cluster, self.clock = cluster, clock
        self._started: dict[str, float] = {}
        self._pause_s: dict[str, float] = {}

    def look(self) -> list[str]:
        """Start again what has ended and whose pause is over; cut long logs. Returns the names of what was started."""
        began: list[str] = []
        for name in processes.recorded(self.cluster):
            if name != NAME and processes.running_pid(self.cluster, name) is None and self._due(name):
                began += self._restart(name)
        for log in self.cluster.log_dir.glob("*.log"):
            rotate(log)
        return began

    def _due(self, name: str) -> bool:
        since = self.clock() - self._started.get(name, float("-inf"))
        if since >= _HEALTHY_S:
            self._pause_s.pop(name, None)
        return since >= self._pause_s.get(name, 0.0)

    def _restart(self, name: str) -> list[str]:
        self._started[name] = self.clock()
        self._pause_s[name] = min(_LONGEST_PAUSE_S, 2 * self._pause_s.get(name, _FIRST_PAUSE_S / 2))
        try:
            processes.restart(self.cluster, name)
        except (ClusterError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            return []
        print(f"{name}: had ended, started again", file=sys.stderr, flush=True)
        return [name]


def rotate(log: Path) -> None:
    """Move a long log's content aside. Its writers append, so they go on in the emptied file; the instant between may lose a line."""
    if log.name == "audit.log" or log.stat().st_size <= LOG_BYTES:
        return
    log.with_suffix(".log.1").write_bytes(log.read_bytes())
    with log.open("r+b") as file:
        file.truncate(0)


def main() -> int:
    name = sys.argv[1]
    supervisor: Supervisor | None = None
    while True:
        try:
            cluster = load(name)
        except RecordError as error:
            print(error, file=sys.stderr, flush=True)
            cluster = None
        if cluster is None:
            return 0
        supervisor = supervisor or Supervisor(cluster)
        with tried(lock_file(name)) as held:
            if held:
                supervisor.look()
        # What it started are its children.
        processes.reap(-1)
        time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
