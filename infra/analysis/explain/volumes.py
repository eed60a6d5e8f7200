"""Claims and their provisioners."""

from collections.abc import Iterable, Iterator

from components.contract import SHARED_CLASS
from infra.analysis.explain.facts import Facts, Finding, key, one_line
from infra.analysis.explain.snapshot import Object

_GRACE_S = 10
"""Seconds. A claim or a pod that is younger may still become ready by itself."""


def claims(facts: Facts) -> Iterator[Finding]:
    """Claims that are not bound, and why; and claims that are marked for deletion while pods use them."""
    classes = {item["metadata"]["name"]: item for item in facts.all("StorageClass")}
    every, live = _by_claim(facts.all("Pod")), _by_claim(facts.live_pods())
    for claim in facts.all("PersistentVolumeClaim"):
        users = live.get(claim["metadata"]["name"], [])
        if claim["metadata"].get("deletionTimestamp"):
            ending = every.get(claim["metadata"]["name"], [])
            yield _leaving(claim, users) if users or _held_by_others(claim) else _ending(claim, ending)
            continue
        if claim["status"].get("phase") == "Bound":
            continue
        finding = _claim(facts, claim, classes, users)
        if finding is not None:
            yield finding


def _by_claim(pods: Iterable[Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for pod in pods:
        names = {
            volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"].get("volumes", []) if "persistentVolumeClaim" in volume
        }
        for name in names:
            found.setdefault(name, []).append(pod)
    return found


def _leaving(claim: Object, users: list[Object]) -> Finding:
    """A deletion cannot be taken back: the claim goes with its last pod, and no new pod may use it."""
    name, subject = claim["metadata"]["name"], key(claim, "PersistentVolumeClaim")
    pods = ", ".join(pod["metadata"]["name"] for pod in users)
    held = f"pods {pods}" if pods else f"finalizers {', '.join(claim['metadata'].get('finalizers', [])) or 'none'}"
    return Finding(
        cause="claim-leaving",
        subject=subject,
        got=f"a mark for deletion, which waits for {held}",
        want="a claim that pods can use",
        do=f"copy what you need from it, end what uses it, and run make up, which makes a new one: kubectl describe pvc {name}",
        about=frozenset({subject}),
        covers=frozenset(key(pod, "Pod") for pod in users if pod["status"].get("phase") == "Pending"),
    )


def _held_by_others(claim: Object) -> bool:
    """Whether something keeps it that Kubernetes does not take away by itself when no pod uses the claim."""
    return bool(set(claim["metadata"].get("finalizers", [])) - {"kubernetes.io/pvc-protection"})


def _ending(claim: Object, pods: list[Object]) -> Finding:
    """As when a StatefulSet is replaced together with its volumes: it goes by itself, with the last of its pods."""
    name, subject = claim["metadata"]["name"], key(claim, "PersistentVolumeClaim")
    waits = f"waits for {', '.join(pod['metadata']['name'] for pod in pods)} to end" if pods else "is about to end"
    return Finding(
        cause="claim-ending",
        subject=subject,
        got=f"a deletion that {waits}",
        want="its end, and then a new claim where one is declared",
        do=f"wait; when it lasts, see what holds it: kubectl describe pvc {name}",
        about=frozenset({subject}),
        covers=frozenset(),
    )


def _claim(facts: Facts, claim: Object, classes: dict[str, Object], users: list[Object]) -> Finding | None:
    subject, wanted = key(claim, "PersistentVolumeClaim"), claim["spec"].get("storageClassName")
    tier = "shared" if SHARED_CLASS in (wanted, claim["metadata"]["name"]) else "hot"
    about, covers = frozenset({subject}), frozenset(key(pod, "Pod") for pod in users)
    failed = facts.events("PersistentVolumeClaim", claim, "ProvisioningFailed")
    if "StorageClass" not in facts.snapshot.unreadable and wanted not in classes:
        known = ", ".join(sorted(classes)) or "none at all"
        return Finding(
            cause="storage-class-missing",
            subject=subject,
            got=f"StorageClass {wanted}, which does not exist" if wanted else "no StorageClass, and no default one",
            want=f"one that is there ({known})",
            do="correct storageClassName, or run make up, which makes the fleet's two",
            about=about,
            covers=covers,
        )
    if claim["status"].get("phase") == "Lost":
        return Finding(
            cause="claim-lost",
            subject=subject,
            got=f"its volume {claim['spec'].get('volumeName')} gone",
            want="a bound claim",
            do=f"delete the claim, and run make up to fill a new one: kubectl delete pvc {claim['metadata']['name']}",
            about=about,
            covers=covers,
        )
    chosen = claim["metadata"].get("annotations", {}).get("volume.kubernetes.io/selected-node")
    waits = classes.get(wanted or "", {}).get("volumeBindingMode") == "WaitForFirstConsumer" and not chosen
    if waits and not failed:
        # When the pod cannot be placed, the finding about the pod says why.
        return None if users else _unused(facts, subject, about)
    provisioner = classes.get(wanted or "", {}).get("provisioner", "")
    if not failed and facts.age_s(claim["metadata"].get("creationTimestamp")) < _GRACE_S:
        return None
    return Finding(
        cause="provisioner",
        subject=subject,
        got=f"no volume from provisioner {provisioner}" + (f" ({one_line(failed[0])})" if failed else ""),
        want="Bound",
        do=f"see that {provisioner} runs in the cluster, or name one that does in modelfleet:storage.{tier}.provisioner",
        about=about,
        covers=covers,
    )


def _unused(facts: Facts, subject: str, about: frozenset[str]) -> Finding:
    return Finding(
        cause="claim-unused",
        subject=subject,
        got="WaitForFirstConsumer and no pod that mounts it",
        want="a pod that does",
        do=f"start what uses it, or delete it: kubectl delete -n {facts.snapshot.namespace} {subject}",
        about=about,
    )
