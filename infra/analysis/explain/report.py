"""Prints why a stack is not ready."""

import sys

from infra.analysis.explain import warmth
from infra.analysis.explain.causes import explain
from infra.analysis.explain.snapshot import collect


def report(context: str, kubeconfig: str | None, namespace: str, key: str | None) -> int:
    """Print one line for each finding, or that everything is ready. Returns the number of findings. Raises SnapshotError."""
    snapshot = collect(context, kubeconfig, namespace, key)
    for kind, reason in snapshot.unreadable.items():
        print(f"note: {kind} objects: got {reason}, want leave to list them; without it their causes are not found", file=sys.stderr)
    findings = explain(snapshot)
    print("\n".join(str(finding) for finding in findings) or "everything is ready", flush=True)
    for line in warmth.notes(snapshot.metrics.values()):
        print(f"note: {line}", file=sys.stderr)
    return len(findings)
