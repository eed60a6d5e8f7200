"""What large and hostile bodies cost the API server, in CPU and in memory. Writes bench/results/intake.json.

Loopback only, a minute, beside nothing else:
    python -m bench.intake
"""

import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from api_server.requests import document
from bench.conditions import conditions, keep
from bench.processes import cpu_s
from tests.service.neighbours import Fleet, answers, ask
from tests.service.test_bounds import BODY, HOSTILE, POD, peak, sent

TURNS = 20


def bodies() -> dict[str, Any]:
    """For each body of 32 MiB: its status, and the CPU milliseconds that it cost."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, Fleet(Path(directory)).running() as fleet:
        fleet.add(answers)
        with fleet.gateway(MEMORY_BYTES=str(POD)) as api:
            ask(api)
            text = [{"role": "user", "content": "x" * (BODY - 1000)}]
            cases: dict[str, Callable[[], int]] = {name: functools.partial(sent, api, *parts) for name, parts in HOSTILE.items()}
            cases["one text, answered"] = lambda: ask(api, messages=text).status_code
            for name, run in cases.items():
                before = cpu_s(api.process.pid)
                status = run()
                time.sleep(0.5)
                results[name] = {"status": status, "cpu_ms": round(1000 * (cpu_s(api.process.pid) - before))}
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
    keep("intake", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
