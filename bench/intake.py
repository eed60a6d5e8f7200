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
from typing import Any, get_type_hints

import msgspec
import pydantic

from api_server.models import Chat
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


def payloads() -> dict[str, dict[str, Any]]:
    """The body of an agent's turn, and one of a few words."""
    properties = {f"field_{number}": {"type": "string", "description": "What it is for, in some words."} for number in range(6)}
    tools = [{"type": "function", "function": {"name": f"f{number}", "parameters": {"properties": properties}}} for number in range(20)]
    messages = [{"role": "user", "content": 'def f(a):\n    return {a: ["b"]}\n' * 60}] * 80
    given = {"model": "coder", "stream": True}
    return {"agent": {**given, "messages": messages, "tools": tools, "temperature": 0.2}, "short": {**given, "messages": messages[:1]}}


def codecs() -> dict[str, float]:
    """Microseconds of each way to read, to check and to write a body."""
    by_pydantic, results = pydantic_chat(), {}
    for name, value in payloads().items():
        body = json.dumps(value).encode()
        for way, run in (
            ("read, json without doubled keys", lambda body=body: document(body)),
            ("read, msgspec", lambda body=body: msgspec.json.decode(body)),
            ("check, msgspec", lambda value=value: msgspec.convert(value, Chat)),
            ("check, pydantic", lambda value=value: by_pydantic.model_validate(value)),
            ("write, json", lambda value=value: json.dumps(value).encode()),
            ("write, msgspec", lambda value=value: msgspec.json.encode(value)),
        ):
            results[f"{name} ({len(body) // 1024} KiB): {way}"] = round(1e6 * statistics.median(timed(run) for _ in range(TURNS)), 2)
    return results


def pydantic_chat() -> type[pydantic.BaseModel]:
    """The typed model of chat completions, with the same fields and as strict. It has to take and to refuse what the other does."""
    types = get_type_hints(Chat)
    fields: dict[str, Any] = {field.name: (types[field.name], ... if field.required else None) for field in msgspec.structs.fields(Chat)}
    model = pydantic.create_model("PydanticChat", __config__=pydantic.ConfigDict(strict=True, frozen=True), **fields)
    wrong = ({"temperature": "hot"}, {"stream": 1}, {"messages": {}}, {"stop": [1]}, {"max_tokens": True})
    for value in payloads().values():
        model.model_validate(value)
        for change in wrong:
            for check, error in (
                (model.model_validate, pydantic.ValidationError),
                (functools.partial(msgspec.convert, type=Chat), msgspec.ValidationError),
            ):
                try:
                    check({**value, **change})
                except error:
                    continue
                raise AssertionError(f"{check} took {change}")
    return model


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
