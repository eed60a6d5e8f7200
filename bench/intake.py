"""What large and hostile bodies cost the API server: the longest silence of its loop, and memory. Writes bench/results/intake.json.

Loopback only, a minute, beside nothing else:
    python -m bench.intake
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec

from api_server.requests import document
from bench.conditions import conditions
from tests.service.neighbours import Fleet, answers, ask
from tests.service.processes import Service
from tests.service.test_bounds import BODY, HOSTILE, POD, peak, sent

TURNS = 20


class Watch:
    """Asks for /health without a pause, and keeps the longest time that an answer took."""

    def __init__(self, service: Service) -> None:
        self._url = f"{service.url}/health"
        self._end = threading.Event()
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._end.is_set():
                started = time.perf_counter()
                client.get(self._url)
                self.longest_s = max(self.longest_s, time.perf_counter() - started)

    def __enter__(self) -> "Watch":
        self._thread.start()
        time.sleep(1)
        self.longest_s = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def bodies() -> dict[str, Any]:
    """For each hostile body of 32 MiB: status, seconds, and the longest answer of /health meanwhile."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, Fleet(Path(directory)).running() as fleet:
        fleet.add(answers)
        with fleet.gateway(MEMORY_BYTES=str(POD)) as api:
            ask(api)
            with Watch(api) as quiet:
                time.sleep(5)
            results["nothing"] = {"health_ms": round(1000 * quiet.longest_s, 1)}
            for name, (start, filling) in HOSTILE.items():
                with Watch(api) as watch:
                    started = time.perf_counter()
                    status = sent(api, start, filling)
                    elapsed = time.perf_counter() - started
                results[name] = {"status": status, "s": round(elapsed, 2), "health_ms": round(1000 * watch.longest_s, 1)}
            text = [{"role": "user", "content": "x" * (BODY - 1000)}]
            with Watch(api) as watch, suppress(httpx.HTTPError):
                status = ask(api, messages=text).status_code
                results["one text"] = {"status": status, "health_ms": round(1000 * watch.longest_s, 1)}
            results["peak_mib"] = round(peak(api) / 2**20)
            results["body_mib"], results["pod_mib"] = BODY // 2**20, POD // 2**20
    return results


def codecs() -> dict[str, float]:
    """Microseconds of each way to read and write the body of an agent's turn, and one of a few words."""
    properties = {f"field_{number}": {"type": "string", "description": "What it is for, in some words."} for number in range(6)}
    tools = [{"type": "function", "function": {"name": f"f{number}", "parameters": {"properties": properties}}} for number in range(20)]
    messages = [{"role": "user", "content": 'def f(a):\n    return {a: ["b"]}\n' * 60}] * 80
    results: dict[str, float] = {}
    for name, value in (("agent", {"messages": messages, "tools": tools}), ("short", {"messages": messages[:1], "stream": True})):
        body = json.dumps(value).encode()
        for way, run in (
            ("read, json without doubled keys", lambda body=body: document(body)),
            ("read, msgspec", lambda body=body: msgspec.json.decode(body)),
            ("write, json", lambda value=value: json.dumps(value).encode()),
            ("write, msgspec", lambda value=value: msgspec.json.encode(value)),
        ):
            results[f"{name} ({len(body) // 1024} KiB): {way}"] = round(1e6 * statistics.median(timed(run) for _ in range(TURNS)), 1)
    return results


def timed(run: Any) -> float:
    started = time.process_time()
    for _ in range(20):
        run()
    return (time.process_time() - started) / 20


def main() -> int:
    record = {**conditions("python -m bench.intake"), "bodies": bodies(), "microseconds": codecs()}
    path = Path(__file__).parent / "results" / "intake.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
