"""docs/best-practices.md: bench/practices.txt, with each figure from a file of bench/results.

python -m bench

`{{file path format}}` is the figure at that path of `bench/results/<file>.json`. The path's parts are joined by `/`; the format is one of
Python's, or one of `FORMATS`. `path by path` is the first figure divided by the second. `{{agents}}` is the table of simulated fleets.
"""

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "best-practices.md"
TEXT = Path(__file__).with_suffix(".txt")
_RESULTS = Path(__file__).parent / "results"
_FIGURE = re.compile(r"\{\{(?P<file>\w+) (?P<path>[^{}]+) (?P<form>[^{} ]+)\}\}")
FORMATS: dict[str, Callable[[float], str]] = {
    "percent": lambda value: f"{100 * value:.0f} %",
    "MB": lambda value: f"{value / 1e6:.3g}",
    "GB": lambda value: f"{value / 1e9:.1f}",
}
_MEMORY = ("ample", "short")
_COLUMNS = 140


class FigureError(Exception):
    """The text asks for a figure that no result has."""


def figure(file: str, path: str, form: str) -> str:
    """Raises FigureError."""
    document = json.loads((_RESULTS / f"{file}.json").read_text())
    first, *second = (_at(file, document, each) for each in path.split(" by "))
    value = first / second[0] if second else first
    return FORMATS[form](value) if form in FORMATS else format(value, form)


def _at(file: str, document: Any, path: str) -> Any:
    value = document
    for part in path.split("/"):
        if not isinstance(value, dict) or part not in value:
            raise FigureError(f"bench/practices.txt: got {path} of {file}.json, want what is there; it has no {part!r}")
        value = value[part]
    return value


def agents() -> str:
    """Ours alone: a row for each number of agents."""
    document = json.loads((_RESULTS / "picking.json").read_text())
    fleets: dict[str, Any] = document["results"]["simulated fleets"]
    sizes: dict[str, int] = document["sizes"]["memory"]
    columns = [
        "agents",
        *(f"{FORMATS['MB'](sizes[memory])} MB: {what}" for memory in _MEMORY for what in ("turns a minute", "warm", "first word")),
    ]
    rows = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for number in sorted({int(name.split()[2]) for name in fleets}):
        cells = [str(number)]
        for memory in _MEMORY:
            found = fleets[f"{memory} memory, {number} agents"]["ours"]
            cells += [f"{found['turns_a_minute']:.0f}", FORMATS["percent"](found["warm"]), f"{found['first_word_p50_s']:.1f} s"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _wrapped(block: str) -> str:
    """A paragraph, or the points of a list, in lines of the house's length."""
    if block.startswith(("|", "#")):
        return block
    points = re.split(r"\n(?=- )", block)
    indent = "  " if block.startswith("- ") else ""
    return "\n".join(
        textwrap.fill(" ".join(each.split()), _COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for each in points
    )


def page() -> str:
    text = _FIGURE.sub(lambda found: figure(found["file"], found["path"], found["form"]), TEXT.read_text().strip())
    return "\n\n".join(map(_wrapped, text.replace("{{agents}}", agents()).split("\n\n"))) + "\n"
