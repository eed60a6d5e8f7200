"""The line of the log that each request gets."""

import contextlib
import functools
import logging
import sys
import time

log = logging.getLogger("api_server")


@functools.lru_cache(maxsize=1)
def _second(unix: int) -> str:
    """In local time. The C library looks at its time zone's file for each."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def write(request_id: str, key: str, model: str, status: int, elapsed_s: float) -> None:
    """Say that a request has its answer. Python's logging takes three times as long for a line."""
    if not log.isEnabledFor(logging.INFO):
        return
    now = time.time()
    stamp = f"{_second(int(now))},{int(now % 1 * 1000):03d}"
    line = f"{stamp} INFO request {request_id} key {key} model {model} status {status} {elapsed_s:.3f} s\n"
    # A log that nobody takes is no reason to fail a request.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line)
