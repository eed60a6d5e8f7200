"""What need not be read again: tokens by the tier that had them, and the seconds that reading them would have taken.

The speed is that of the same model in the same process: the mean of its long reads, as the engine timed them. What is reused before there
was one is counted in seconds as soon as there is.
"""

from collections import Counter as Tally
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

LONG = 512
"""Tokens of a read that shows the speed. Of a shorter one, most is what any step of an engine takes, and by it too much would be saved.
llama.cpp reads as many in one step (`n_ubatch`)."""
_SHORTEST_S = 1e-6
"""Of a long read; what is below it is no time."""
_BELOW = ("disk", "host")
"""Tiers that give an engine back what it had dropped; `engine` is what it held itself."""


@dataclass(frozen=True)
class Tokens:
    """What an engine that counts by itself has read and written since it began."""

    read: int
    """Tokens of prompts, without those that it still had."""
    reused: int
    written: int
    host: int = 0
    """Of `reused`, those from host memory."""
    disk: int = 0
    """And those from files."""
    reads: int = 0
    """Requests that have ended, of which the next two are."""
    timed: int = 0
    """Tokens that they read."""
    seconds: float = 0.0
    """That they waited for it."""


class Saved:
    """Counters of one process. No token is in two tiers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tokens = Counter("model_server_reused_prompt_tokens", "Prompt tokens that were still there", ["tier"], registry=registry)
        self._seconds = Counter("model_server_saved_seconds", "Time that it took not to do again", ["tier"], registry=registry)
        speed = Gauge("model_server_prompt_tokens_per_second", "Of long reads; 0: none yet", registry=registry)
        speed.set_function(lambda: self._timed / self._timed_s if self._timed_s else 0.0)
        self._timed, self._timed_s = 0, 0.0
        self._reused = 0
        """Tokens whose tier is still to be settled."""
        self._came: Tally[str] = Tally()
        """Tokens that a tier gave the engine, and that no answer has counted yet."""
        self._unpriced: Tally[str] = Tally()
        """Tokens by tier that are not in the seconds yet."""
        for tier in ("engine", *_BELOW):
            self._count(tier, 0)
        self.answer(0)

    def read(self, tokens: int, seconds: float, longest_s: float, reads: int = 1) -> None:
        """The engine has read so much in that time, which was at most `longest_s`. What cannot be so says nothing of its speed."""
        if tokens >= LONG * reads > 0 and _SHORTEST_S <= seconds <= longest_s:
            self._timed += tokens
            self._timed_s += seconds

    def reuse(self, tokens: int) -> None:
        self._reused += tokens

    def came(self, tier: str, tokens: int) -> None:
        """From a tier below the engine's memory; an answer that used them counts them too."""
        self._came[tier] += tokens

    def answer(self, seconds: float) -> None:
        """An exact answer was there; the first time it took so long."""
        self._seconds.labels("answers").inc(seconds)

    def settle(self) -> None:
        """Give each reused token to a tier, and each tier its seconds."""
        for tier in _BELOW:
            part = min(self._reused, self._came[tier])
            self._count(tier, part)
            self._came[tier] -= part
            self._reused -= part
        self._count("engine", self._reused)
        self._reused = 0
        if self._timed:
            for tier, tokens in self._unpriced.items():
                self._seconds.labels(tier).inc(tokens * self._timed_s / self._timed)
            self._unpriced.clear()

    def _count(self, tier: str, tokens: int) -> None:
        self._tokens.labels(tier).inc(tokens)
        self._seconds.labels(tier).inc(0)
        self._unpriced[tier] += tokens
