"""Models that a replica serves the others without, and those that a model server's copier could not bring."""

import re
from collections.abc import Iterator

from components.contract import MODEL_SERVER, MODEL_WRITER, OLLAMA, kind_of
from components.ollama_agent import AGENT
from infra.analysis.explain.facts import Facts, Finding, one_line


def problems(facts: Facts) -> Iterator[Finding]:
    """In the words of the agents of replicas that are ready; what holds the others back is said of them."""
    unready = {
        container.pod["metadata"]["name"] for container in facts.containers() if container.name in (OLLAMA, AGENT) and not container.ready
    }
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


def copies(facts: Facts) -> Iterator[Finding]:
    """Model servers whose copier failed, in its own words. The kubelet lets it try again."""
    for container in facts.containers():
        pod = container.pod
        if container.name != MODEL_WRITER or kind_of(facts.component(pod)) != MODEL_SERVER or not container.ended.get("exitCode"):
            continue
        if match := re.fullmatch(r"error: (.+?): got (.+), want (.+?); (.+)", facts.last_words(container)):
            yield Finding(
                cause="copy-failed",
                subject=facts.workload(pod),
                got=f"{one_line(match[1])} with {one_line(match[2])}",
                want=match[3],
                do=match[4].replace("storage.hot.size", f"storage.hot.size or {facts.setting(pod, 'localSize')}"),
                about=frozenset({f"Pod/{pod['metadata']['name']}"}),
            )
