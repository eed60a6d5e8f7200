"""Reads the driver in a thread of its own, since a hung driver hangs whoever asks it, for ever."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from prometheus_client.core import GaugeMetricFamily, Metric

log = logging.getLogger("metrics_exporter")


class Driver:
    """One call at a time. While it hangs, every scrape is told so at once, and no second call is made."""

    def __init__(self, node: str, collect: Callable[[], list[Metric]], timeout_s: float) -> None:
        self._node, self._collect, self._timeout_s = node, collect, timeout_s
        self._running: Future[list[Metric]] | None = None
        self._started = 0.0
        self._hangs = False

    async def read(self) -> list[Metric]:
        """What the driver says, or `nvml_up 0` where it says nothing in time. Raises whatever the call raised."""
        if self._running is None or self._running.done():  # What came too late is old.
            self._started, self._running = time.monotonic(), Future()
            threading.Thread(target=self._call, args=(self._running,), daemon=True).start()
        running, left_s = self._running, self._started + self._timeout_s - time.monotonic()
        try:
            found = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(running)), max(left_s, 0))
        except TimeoutError:
            if not self._hangs:
                log.warning("NVML: got nothing for %g s, want an answer; reporting nvml_up 0 until it comes", self._timeout_s)
            self._hangs = True
            up = GaugeMetricFamily("nvml_up", "Whether NVML answers", labels=["node"])
            up.add_metric([self._node], 0)
            return [up]
        self._hangs = False
        return found

    def _call(self, future: "Future[list[Metric]]") -> None:
        try:
            future.set_result(self._collect())
        except Exception as error:
            future.set_exception(error)
