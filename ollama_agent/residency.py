"""What the server has in memory, look after look: which models were pushed out, and which are not on the GPU."""

import logging
import time
from collections import Counter
from collections.abc import Sequence

from ollama_agent.catalog import Model
from ollama_agent.ollama import Loaded
from ollama_agent.problems import Problem

log = logging.getLogger("ollama_agent")
_GPU_S = 10.0
"""How long a loaded model may seem to be off its GPU: while it loads, Ollama counts as its engine reports."""


class Residency:
    def __init__(self, *, gpu: bool) -> None:
        """`gpu`: whether every model should be on GPUs, with all of it."""
        self.loaded: dict[str, Loaded] = {}
        self.evictions: Counter[str] = Counter()
        self._gpu = gpu
        self._gone: dict[str, Loaded] = {}
        """Models that a look ago were found unloaded."""
        self._off_since: dict[str, float] = {}

    def start_over(self) -> None:
        """Another server: nothing is loaded, and nothing was evicted."""
        self.loaded, self._gone, self._off_since = {}, {}, {}

    def note(self, loaded: dict[str, Loaded], models: Sequence[Model]) -> None:
        wanted = {model.name: model for model in models}
        for name, before in self._gone.items():
            # Still wanted, a look later: nobody has replaced or removed it.
            if name in wanted and wanted[name].matches(before.digest):
                self.evictions[name] += 1
                log.warning("%s: evicted before its keep-alive ended", name)
        self._gone = {name: before for name, before in self.loaded.items() if name not in loaded and not before.expired}
        self.loaded = loaded
        now = time.monotonic()
        self._off_since = {name: self._off_since.get(name, now) for name in loaded if self.off_gpu(name)}

    def off_gpu(self, name: str) -> Problem | None:
        """What is wrong with a loaded model that is not all on the GPU, where it should be."""
        found = self.loaded.get(name)
        if not self._gpu or found is None or not found.off_gpu:
            return None
        got = f"models.{name}: got {found.vram_bytes} of {found.bytes} bytes on the GPU, want all of them"
        return Problem("gpu", f"{got}; see that the pod has its GPU and enough of its memory, or lower contextLength")

    def off_for_long(self) -> list[str]:
        """Models that are off the GPU for more than a moment."""
        return [name for name, since in self._off_since.items() if time.monotonic() - since >= _GPU_S]
