# ruff: noqa: N999 (named after the command)
"""How long `make try` and the wheel take to the first answer, and what they take of the disk. Writes bench/results/try.json.

Needs `python3` without this project's packages beside it, and the package index. Runs beside nothing else:
    python -m bench.try
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.conditions import beside, keep
from bench.processes import memory_bytes
from modelfleet import TREE, processes, wheel
from modelfleet.models import pinned

AIM_S = 120
"""To the first answer on a fresh machine: the project's own goal."""
_LIMIT_S = 900
_INDEX = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_BUNDLE")
"""Variables that say how this machine reaches its package index."""


def once(argv: Sequence[str], home: Path) -> dict[str, Any]:
    """Wall seconds to the answer, memory then, CPU seconds of every process to the end, and the size of the home afterwards."""
    kept = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith(_INDEX)}
    started = time.monotonic()
    with (home / "out").open("w+") as out:
        process = subprocess.Popen(argv, cwd=TREE, env=kept | {"HOME": str(home)}, stdout=out, stderr=sys.stderr)
        while "stop: " not in (home / "out").read_text():
            if process.poll() is not None or time.monotonic() - started > _LIMIT_S:
                process.kill()
                raise SystemExit(f"{' '.join(argv)}: got no answer, want one; see the lines above")
            time.sleep(0.1)
        wall = time.monotonic() - started
        memory = memory_bytes(process.pid)
        process.terminate()
        _, _, usage = os.wait4(process.pid, 0)
    answer = re.search(r"^\S+: (.+)$", (home / "out").read_text(), re.MULTILINE)
    return {
        "wall_s": round(wall, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "memory_mb": round(memory / 1e6),
        "disk_mb": round(processes.tree_bytes(home) / 1e6),
        "answer": answer[1] if answer else "",
    }


def main() -> int:
    load = os.getloadavg()[0]
    uv = str(Path(sys.executable).with_name("uv"))
    with tempfile.TemporaryDirectory() as work:
        built = wheel.build(Path(work))
        ways = {
            "make try": ["make", "-s", "try", f"PYTHON={getattr(sys, '_base_executable', sys.executable)}"],
            "uvx": [uv, "tool", "run", "--python", sys.executable, "--from", str(built), "modelfleet", "try"],
        }
        figures: dict[str, dict[str, Any]] = {}
        for name, argv in ways.items():
            home = Path(work, name.replace(" ", "-"))
            home.mkdir()
            figures[name] = {"cold": once(argv, home), "warm": once(argv, home)}
    packages = {name: metadata.version(name) for name in ("uv", "xllamacpp", "aiohttp")}
    report = beside("python -m bench.try", load, {**packages, pinned()["package"]: pinned()["version"]}) | {
        "figures": figures,
        "aim_s": AIM_S,
        "ratio_to_aim": {name: round(each["cold"]["wall_s"] / AIM_S, 2) for name, each in figures.items()},
    }
    keep("try", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
