"""What each way to the first answer takes, as docs/ways.md: written from the results of the proofs, never by hand.

python -m bench
"""

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "ways.md"
_RESULTS = Path(__file__).parent / "results" / "proofs"
_VENDORS = ("pulumi", "pulumi-language-python", "pulumi-resource-kubernetes")
"""Not compiled where the vendor's `pulumi` is on the PATH."""
_HEAD = """# The ways to the first answer, measured

Each way was run on an empty Debian, with the commands of README and with what README asks for installed. To the first answer means from the
command to the line in which the model answers; the fleet has one node. `python -m bench` writes this page from the results of the
proofs `fresh-root` and `fresh-root-source` ([proofs.md](proofs.md)).

"""
_COLUMNS = """| way | Debian | first time | CPU minutes | downloads | disk it keeps | again |
| --- | --- | --- | --- | --- | --- | --- |
"""
_NEVER = "`{name}` has no result yet: `make proof NAME={name}` makes one.\n\n"
_MEASURED = "`{name}` {result} on {date}, on {cores} cores and {memory_gib} GiB.\n\n"
_VENDOR = """
With the vendor's `pulumi` on the PATH, `make up` compiles {minutes:.0f} CPU minutes less of these. That way is not measured: the vendor's
program can be had from the vendor alone.
"""


def _row(way: str, debian: str, costs: dict[str, dict[str, float]]) -> str:
    cold, warm = costs["cold"], costs["warm"]
    cells = (
        way,
        debian,
        _time(cold["wall_s"]),
        f"{cold['cpu_min']:.1f}",
        *map(_size, (cold["download_mb"], cold["kept_mb"])),
        _time(warm["wall_s"]),
    )
    return f"| {' | '.join(cells)} |\n"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _size(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def _result(name: str) -> dict[str, Any] | None:
    try:
        return json.loads((_RESULTS / f"{name}.json").read_text())
    except FileNotFoundError:
        return None


def _said(name: str, result: dict[str, Any] | None) -> str:
    if result is None:
        return _NEVER.format(name=name)
    return _MEASURED.format(name=name, result=result["result"], date=result["date"], **result["machine"])


def page() -> str:
    results = {name: _result(name) for name in ("fresh-root", "fresh-root-source")}
    text, rows = _HEAD + "".join(_said(name, result) for name, result in results.items()), ""
    if quick := results["fresh-root"]:
        for way in (
            "make try",
            "uvx --from dist/modelfleet-*.whl modelfleet try",
            "make up TOOLS",
            "uvx --from 'dist/modelfleet-*.whl[up]' modelfleet up --tools",
        ):
            for suite, debian in (("bookworm", "12"), ("trixie", "13")):
                if costs := quick["figures"].get(f"{suite} {way}"):
                    rows += _row(f"`{way}`", debian, costs)
    if source := results["fresh-root-source"]:
        rows += _row("`make up`", "12", source["figures"]["bookworm make up"])
        minutes = sum(source["figures"]["tools"][name]["cpu_s"] for name in _VENDORS) / 60
        rows += _VENDOR.format(minutes=minutes)
    return text + _COLUMNS + rows if rows else text.rstrip() + "\n"
