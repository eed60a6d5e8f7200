"""`make down` on a cluster of the user's own: what goes is shown and agreed to. What is not the stack's stays, and what is retained."""

import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from components.contract import PART_OF
from infra.engine.errors import CommandError
from infra.lifecycle.bring_up import say
from infra.lifecycle.deployment import Deployment
from infra.program.cluster import Objects
from infra.program.cluster import identity as cluster_identity

_OF_EVERY_NAMESPACE = {"ConfigMap/kube-root-ca.crt", "ConfigMap/openshift-service-ca.crt", "ServiceAccount/default"}
"""What Kubernetes and OpenShift put into each namespace."""
_OF_NOBODY = ("Event", "Endpoints", "EndpointSlice", "Lease", "PodMetrics")
"""What controllers write about other objects."""


def down(deployment: Deployment, *, agreed: bool) -> None:
    """Show the objects that will be deleted, ask, and delete them. Raises CommandError without a yes, and for what must not go."""
    resources = deployment.objects()
    if not resources:
        say(f"down: stack {deployment.stack} has nothing on {deployment.context}")
        return
    _is_the_same_cluster(deployment)
    _refuse_strangers(deployment, resources)
    say(f"down: these {len(resources)} objects of stack {deployment.stack} go from {deployment.context}, namespace {deployment.namespace}:")
    for line in resources:
        say(f"  {line}")
    if not agreed and not _confirmed(f"Type the name of the context, {deployment.context}, to delete them: ", deployment.context):
        raise CommandError("down: got no confirmation, want the context's name typed; run it in a terminal, or add YES=1")
    deployment.destroy()
    if kept := deployment.objects():
        say(f"down: kept, because of storage.retain: {', '.join(kept)}")


def _is_the_same_cluster(deployment: Deployment) -> None:
    found, wanted = cluster_identity(deployment.context, deployment.kubeconfig), deployment.identity
    if found != wanted:
        raise CommandError(
            f"down: got the cluster {found} behind context {deployment.context!r}, want {wanted}, which this stack was made for; "
            f"choose the right context, or, if that cluster is gone, run make down CONTEXT={deployment.context} FORGET=1"
        )


def _refuse_strangers(deployment: Deployment, resources: list[str]) -> None:
    """What is in a namespace goes with it, also what others put there. Raises CommandError."""
    cluster = Objects(deployment.context, deployment.kubeconfig)
    for namespace in (each.partition("/")[2] for each in resources if each.startswith("Namespace/")):
        found = sorted(_strangers(cluster.within(namespace)))
        if found:
            raise CommandError(
                f"down: Namespace/{namespace}: got objects in it that are not the stack's ({', '.join(found)}), want none, because they "
                "would go with it; move or delete them"
            )


def _strangers(found: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    for each in found:
        metadata, name = each["metadata"], f"{each['kind']}/{each['metadata']['name']}"
        ours = (metadata.get("labels") or {}).get("app.kubernetes.io/part-of") == PART_OF
        if not ours and not metadata.get("ownerReferences") and name not in _OF_EVERY_NAMESPACE and each["kind"] not in _OF_NOBODY:
            yield name


def forget(deployment: Deployment) -> None:
    """Put the state of a stack aside whose cluster is gone. Raises CommandError while that cluster answers behind the context."""
    if not deployment.state_dir.exists():
        say(f"down: stack {deployment.stack} has nothing on {deployment.context}")
        return
    if cluster_identity(deployment.context, deployment.kubeconfig) == deployment.identity:
        got = f"got the cluster that stack {deployment.stack} is on"
        raise CommandError(f"FORGET: {got}, want one that is gone; run make down CONTEXT={deployment.context}")
    aside = deployment.state_dir.with_name(f"{deployment.stack}.forgotten-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    deployment.state_dir.rename(aside)
    say(f"down: stack {deployment.stack} of the cluster {deployment.context} that is gone is forgotten; its state is kept in {aside}")


def _confirmed(question: str, answer: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == answer
