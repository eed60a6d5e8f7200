"""Models that a replica serves the others without."""

import re
from collections.abc import Iterator

from components.contract import OLLAMA
from components.ollama_agent import AGENT
from infra.analysis.explain.facts import Facts, Finding, one_line


def problems(facts: Facts) -> Iterator[Finding]:
    """In the words of the agents of replicas that are ready; what holds the others back is said of them."""
    unready = {container.pod["metadata"]["name"] for container in facts.containers() if container.name == OLLAMA and not container.ready}
    for pod in facts.live_pods():
        said = re.findall(r" problems: (.+)$", facts.log_of(pod, AGENT), re.MULTILINE)
        lines = said[-1].split(" | ") if said and said[-1] != "none" else []
        match = re.fullmatch(r"(.+?): got (.+), want (.+?); (.+)", lines[0]) if lines else None
        name = pod["metadata"]["name"]
        if match is None or name in unready:
            continue
        more = f", and {len(lines) - 1} more of its models" if len(lines) > 1 else ""
        got, about = f"{match[1]} on {name} with {one_line(match[2])}{more}", frozenset({f"soft:model:{match[1]}"})
        yield Finding(cause="model-problem", subject=facts.workload(pod), got=got, want=match[3], do=match[4], about=about)
