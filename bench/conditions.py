"""What every result says of its making: date, machine, command, versions."""

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devcluster import go, toolchain


def versions() -> dict[str, str]:
    """Of what the figures depend on, as the pins say."""
    tools = {name: toolchain.BY_NAME[name].version for name in ("kubernetes", "pulumi", "ollama")}
    return {"python": platform.python_version(), "go": go.locked_version(go.LOCK), **tools}


def conditions(command: str) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "kernel": platform.release(),
        },
        "command": command,
        "versions": versions(),
    }


def beside(command: str, load_before: float, versions: Mapping[str, str]) -> dict[str, Any]:
    """The same where no cluster is measured: how busy the machine was before, and the versions of Python and of what is measured."""
    said = conditions(command)
    machine = said["machine"] | {"load_before": round(load_before, 1)}
    return said | {"machine": machine, "versions": {"python": said["versions"]["python"], **versions}}


def keep(name: str, record: Mapping[str, Any], *, whole: bool = True) -> None:
    """Write a result to bench/results/NAME.json, and print it. One that is not `whole`, as of a small run, is printed alone."""
    if whole:
        _result(name).write_text(_text(record))
        _so_far(name).unlink(missing_ok=True)
    print(_text(record))


def keep_so_far(name: str, found: Mapping[str, Any]) -> None:
    """What a long run has found, in bench/results/NAME.partial.json, which git ignores: it is there after whatever ends the run early."""
    _so_far(name).write_text(_text(found))


def _result(name: str) -> Path:
    return Path(__file__).parent / "results" / f"{name}.json"


def _so_far(name: str) -> Path:
    return _result(name).with_suffix(".partial.json")


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"
