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
from infra.program.settings.section import SettingsError

_OF_EVERY_NAMESPACE = {"ConfigMap/kube-root-ca.crt", "ConfigMap/openshift-service-ca.crt", "ServiceAccount/default"}
"""What Kubernetes and OpenShift put into each namespace."""
_OF_NOBODY = ("Event", "Endpoints", "EndpointSlice", "Lease", "PodMetrics")
"""What controllers write about other objects."""


def down(deployment: Deployment, *, agreed: bool) -> None:
    """Show the objects that will be deleted, ask, and delete them. Raises CommandError without a yes, and for what must not go."""
    found = deployment.objects()
    go, stay = [each.name for each in found if not each.stays], [each.name for each in found if each.stays]
    kept = f"; kept, because of storage.retain: {', '.join(stay)}" if stay else ""
    if not go:
        say(f"down: stack {deployment.stack} has nothing on {deployment.context} that goes{kept}")
        return
    _is_the_same_cluster(deployment)
    _refuse_strangers(deployment, go)
    say(f"down: these {len(go)} objects of stack {deployment.stack} go from {deployment.context}, namespace {deployment.namespace}{kept}:")
    for name in go:
        say(f"  {name}")
    _ask(deployment, "delete them", agreed=agreed)
    deployment.destroy()


def _is_the_same_cluster(deployment: Deployment) -> None:
    found, wanted = cluster_identity(deployment.context, deployment.kubeconfig), deployment.identity
    if found != wanted:
        raise CommandError(
            f"down: got the cluster {found} behind context {deployment.context!r}, want {wanted}, which this stack was made for; "
            f"choose the right context, or, if that cluster is gone, run make down CONTEXT={deployment.context} FORGET=1"
        )


def _refuse_strangers(deployment: Deployment, names: list[str]) -> None:
    """What is in a namespace goes with it, also what others put there. Raises CommandError."""
    cluster = Objects(deployment.context, deployment.kubeconfig)
    for namespace in (each.partition("/")[2] for each in names if each.startswith("Namespace/")):
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


def forget(deployment: Deployment, *, agreed: bool) -> None:
    """Ask, and put the state of a stack aside whose cluster is gone. Raises CommandError without a yes, and while that cluster answers."""
    if deployment.shared:
        want = f"want its owner to decide; run pulumi stack rm {deployment.stack} --force"
        raise CommandError(f"FORGET: got a stack in the backend that PULUMI_BACKEND_URL names, {want}")
    if not deployment.state_dir.exists():
        say(f"down: stack {deployment.stack} has nothing on {deployment.context}")
        return
    try:
        found = cluster_identity(deployment.context, deployment.kubeconfig)
    except SettingsError as error:
        say(f"down: {error}")
        found = ""
    if found and found == deployment.identity:
        got = f"got the cluster that stack {deployment.stack} is on"
        raise CommandError(f"FORGET: {got}, want one that is gone; run make down CONTEXT={deployment.context}")
    what = f"cluster {found}, another one than before" if found else "no cluster"
    say(f"down: behind {deployment.context} is {what}; stack {deployment.stack} is to forget the one that it was made for")
    _ask(deployment, "forget that cluster", agreed=agreed)
    aside = deployment.state_dir.with_name(f"{deployment.stack}.forgotten-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    deployment.state_dir.rename(aside)
    say(f"down: it is forgotten; the state is kept in {aside}")


def _ask(deployment: Deployment, what: str, *, agreed: bool) -> None:
    """Raises CommandError without a yes."""
    if agreed:
        return
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"Type the name of the context, {deployment.context}, to {what}: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip() == deployment.context:
            return
    raise CommandError("down: got no confirmation, want the context's name typed; run it in a terminal, or add YES=1")
