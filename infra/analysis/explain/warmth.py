"""Why servers read prompts again that one of them had read: by the counters of the API servers, since each of them began.

It is no fault, and nothing waits for it: `make explain` says it in a note, beside its findings.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.parser import text_string_to_metric_families

WARM = 0.9
"""The share that the gateway's choice of servers aims at (bench/agents.py)."""
_FEWEST_TOKENS, _FEWEST_TURNS = 200_000, 100
"""Below these a share says nothing: some turns of one agent."""
_CAUSES = {
    "lost": ("the servers that held their conversations went away", "roll and scale the fleet when few are at work"),
    "paused": ("conversations made room for others", "raise fleet.promptCache or the model server's, or give more replicas"),
    "spilled": ("their servers were much busier than others", "give more replicas"),
    "bound": ("the servers had dropped what they read", "raise fleet.promptCache or the model server's; see that prompts begin as before"),
    "new": ("no conversation was known", "have agents send a session id, such as the header x-session-id"),
}
"""Reason of a turn to what it means, and what to do. Source: docs/gateway.md."""
_MOVED = ("lost", "paused", "spilled")
_READ = {
    "api_server_turns": "turns",
    "api_server_reusable_tokens": "reusable",
    "api_server_cached_tokens": "cached",
}


def notes(metrics: Iterable[str]) -> list[str]:
    """A line for each model whose share is low. `metrics`: what each API server says at /metrics; any other text is left out."""
    sums: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: {name: Counter() for name in _READ.values()})
    for text in metrics:
        # Another program may have the port, and an older API server other labels.
        with contextlib.suppress(ValueError, KeyError):
            for name, model, reason, value in list(_counted(text)):
                sums[model][name][reason] += value
    return [line for model, of in sorted(sums.items()) for line in _note(model, of["turns"], of["reusable"], of["cached"])]


def _counted(text: str) -> Iterator[tuple[str, str, str, int]]:
    """Counter, model, reason and value. Raises ValueError and KeyError."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name in _READ else ():
            if sample.name.endswith("_total"):
                yield _READ[family.name], sample.labels["model"], sample.labels["reason"], int(sample.value)


def _note(model: str, turns: Counter[str], reusable: Counter[str], cached: Counter[str]) -> Iterator[str]:
    if (known := reusable.total()) >= _FEWEST_TOKENS:
        share, anew = cached.total() / known, reusable - cached
        what = f"of {known} tokens from the memory of servers that had read them"
    elif (known := turns["bound"] + sum(turns[each] for each in _MOVED)) >= _FEWEST_TURNS:
        # Of Ollama's servers, which do not say what they used.
        share, anew = turns["bound"] / known, Counter({each: turns[each] for each in _MOVED})
        what = f"of {known} turns on the server that holds their conversation"
    else:
        return
    if share < WARM:
        cause, do = _CAUSES[max(anew, key=lambda reason: anew[reason])]
        yield f"models.{model}: got {share:.0%} {what} ({cause}), want {WARM:.0%} or more; {do}"
