"""From a snapshot to the findings that a person should act on: the causes, without the problems that follow from them."""

from collections.abc import Callable, Iterable, Iterator

from components.contract import MODEL_WRITER, OLLAMA, edges
from infra.analysis.explain import admission, containers, models, network, placement, volumes
from infra.analysis.explain.facts import Facts, Finding, labels
from infra.analysis.explain.snapshot import Snapshot

RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    admission.namespace,
    placement.nodes,
    admission.refused,
    volumes.claims,
    placement.unschedulable,
    placement.gpu_nodes,
    containers.sandbox,
    containers.volumes,
    containers.images,
    containers.configuration,
    containers.ended,
    models.copies,
    containers.models,
    containers.sources,
    network.policies,
    network.missing,
    network.scaled,
    containers.crashes,
    containers.jobs,
    containers.replicas,
    models.problems,
    containers.probes,
    containers.leaving,
    network.services,
    network.answer,
)
"""The rules, in the order of causes: a problem that a later rule finds may follow from the finding of an earlier rule."""
LASTING = frozenset(
    {
        *("claim-leaving", "claim-lost", "storage-class-missing"),
        *("requests-missing", "limit-range", "pod-security"),
        *("image-name", "command-missing", "runtime-handler-missing", "source-refused"),
    }
)
"""Causes that stay however long one waits: a person has to change something."""


def explain(snapshot: Snapshot) -> list[Finding]:
    """Findings, the most fundamental cause first, and at most one for each subject and cause."""
    facts = Facts(snapshot)
    covered: set[str] = set()
    kept: dict[tuple[str, str], Finding] = {}
    for rule in RULES:
        new = [finding for finding in rule(facts) if not finding.about & covered and "*" not in covered]
        for finding in new:
            kept.setdefault((finding.subject, finding.cause), finding)
            covered |= finding.about | finding.covers
        covered |= set(_follows(facts, covered))
    return list(kept.values())


def _follows(facts: Facts, covered: Iterable[str]) -> Iterator[str]:
    """Keys of what else has a problem because of these: workloads and Services of pods, and components that need the component."""
    held = set(covered)
    affected = {name.removeprefix("soft:") for name in held if name.startswith("soft:")}
    for pod in facts.all("Pod"):
        if f"Pod/{pod['metadata']['name']}" in held:
            yield facts.workload(pod)
            yield from network.services_for(facts, labels(pod))
            affected.add(facts.component(pod))
    for kind in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
        for item in facts.all(kind):
            if f"{kind}/{item['metadata']['name']}" in held:
                found = labels(item["spec"]["template"])
                yield from network.services_for(facts, found)
                affected.add(found.get("app.kubernetes.io/name", ""))
    if MODEL_WRITER in affected:
        # Without the writer there is no model, so even servers that exit are no news.
        readers = {OLLAMA, *facts.servers}
        yield from (f"soft:{each}" for reader in readers for each in (reader, f"store:{reader}"))
        affected |= readers
    above: set[str] = set()
    while more := {edge.source for edge in edges(facts.servers) if edge.target in affected | above} - above:
        above |= more
    yield from (f"soft:{component}" for component in above)
