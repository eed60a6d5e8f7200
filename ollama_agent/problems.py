"""Why a model cannot answer, for the metric, the log, and the probe that ends `up`."""

import logging
import time
from dataclasses import dataclass
from typing import Literal

log = logging.getLogger("ollama_agent")

Kind = Literal["delivery", "waiting", "load", "context", "gpu"]
"""`delivery`: not copied or not verified, in the words of model_sync. `waiting`: not in the server's store yet. `load`: the server did not
load it. `context`: loaded for fewer tokens. `gpu`: not all of it is on the GPU."""
TRIED: tuple[Kind, ...] = ("load", "context", "gpu")
"""Those that the server itself has shown."""
LOWER_IT = "lower its contextLength, or give it a model and memory that hold more"
_PATIENCE_S = 30.0
"""How long a model may be waited for before the others go on without it."""


@dataclass(frozen=True)
class Problem:
    kind: Kind
    line: str
    """`models.<name>: got X, want Y; do Z`."""


class Problems:
    """The latest one of each model, and since when it has some. Every change is logged once."""

    def __init__(self) -> None:
        self._found: dict[str, Problem] = {}
        self._since: dict[str, float] = {}
        self._said = ""

    def put(self, name: str, problem: Problem | None) -> None:
        if problem is None:
            self._found.pop(name, None)
            self._since.pop(name, None)
        else:
            self._found[name] = problem
            self._since.setdefault(name, time.monotonic())

    def line(self, name: str) -> str | None:
        found = self._found.get(name)
        return found.line if found is not None else None

    def kind(self, name: str) -> Kind | None:
        found = self._found.get(name)
        return found.kind if found is not None else None

    def is_tried(self, name: str) -> bool:
        """Whether the others need not wait for this model any longer: it was loaded in vain, or it does not come."""
        kind = self.kind(name)
        return kind in TRIED or (kind == "waiting" and time.monotonic() - self._since[name] >= _PATIENCE_S)

    def keep(self, names: set[str]) -> None:
        """Forget those of all other models."""
        for name in self._found.keys() - names:
            self.put(name, None)

    def all(self) -> dict[str, Problem]:
        return dict(sorted(self._found.items()))

    def tell(self) -> None:
        """Log them at every change: `make explain` repeats the last of these lines."""
        lines = " | ".join(" ".join(found.line.split()) for found in self.all().values()) or "none"
        if lines != (self._said or "none"):
            log.warning("problems: %s", lines)
            self._said = lines
