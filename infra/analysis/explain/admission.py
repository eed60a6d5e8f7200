"""Why pods are not even created: quotas, limits, pod security, names that do not exist."""

import re
from collections.abc import Callable, Iterator

from infra.analysis.explain.facts import Facts, Finding, key, labels, one_line
from infra.analysis.explain.snapshot import Object

_HELD = (
    "NamespaceFinalizersRemaining",
    "NamespaceDeletionContentFailure",
    "NamespaceDeletionDiscoveryFailure",
    "NamespaceContentRemaining",
)
"""Conditions of a namespace that say why its deletion does not end, the most precise first."""
_QUOTA_SETTINGS = {"requests.cpu": "cpu", "requests.memory": "memory", "pods": "pods"}


def namespace(facts: Facts) -> Iterator[Finding]:
    """The namespace is missing, or its deletion does not end."""
    name = facts.snapshot.namespace
    subject, everything = f"Namespace/{name}", frozenset({"*"})
    found = next(iter(facts.all("Namespace")), None)
    if found is None:
        yield Finding(
            cause="namespace-missing", subject=subject, got="none", want="it with the fleet in it", do="run make up", about=everything
        )  # fmt: skip
    elif found["metadata"].get("deletionTimestamp"):
        conditions = found["status"].get("conditions", [])
        held = [each["message"] for kind in _HELD for each in conditions if each["type"] == kind and each["status"] == "True"]
        yield Finding(
            cause="namespace-terminating",
            subject=subject,
            got=f"a deletion that waits ({one_line(held[0])})" if held else "a deletion in progress",
            want="it gone or in use",
            do=f"look at what holds it, kubectl get all,pvc,configmaps -n {name} -o yaml | grep -B9 finalizers, and end that; then make up",
            about=everything,
        )


def refused(facts: Facts) -> Iterator[Finding]:
    """Workloads whose pods the API server refuses. Each kind of refusal has a text of its own."""
    for workload, message in _refusals(facts):
        for pattern, explain in _REFUSALS:
            match = re.search(pattern, message)
            if match:
                yield explain(facts, workload, match)
                break
        else:
            yield _finding(
                "refused", workload, workload, one_line(message), "its pods admitted", f"change what it says; kubectl describe {workload}"
            )


def _refusals(facts: Facts) -> Iterator[tuple[str, str]]:
    """(workload, reason) of every workload that has too few pods because their creation failed."""
    for kind, missing in _SHORT.items():
        for item in facts.all(kind):
            messages = facts.events(kind, item, "FailedCreate") if missing(item) else []
            if kind == "ReplicaSet":
                conditions = item.get("status", {}).get("conditions", [])
                failures = [each["message"] for each in conditions if (each["type"], each["status"]) == ("ReplicaFailure", "True")]
                messages = failures + messages
            if messages and missing(item):
                owner = next(iter(item["metadata"].get("ownerReferences", [])), None)
                yield (f"{owner['kind']}/{owner['name']}" if owner and kind == "ReplicaSet" else key(item, kind)), messages[0]


_SHORT: dict[str, Callable[[Object], bool]] = {
    "ReplicaSet": lambda item: item.get("status", {}).get("replicas", 0) < item["spec"].get("replicas", 1),
    "StatefulSet": lambda item: item.get("status", {}).get("replicas", 0) < item["spec"].get("replicas", 1),
    "DaemonSet": lambda item: (
        item.get("status", {}).get("currentNumberScheduled", 0) < item.get("status", {}).get("desiredNumberScheduled", 0)
    ),
    "Job": lambda item: not any(item.get("status", {}).get(field) for field in ("active", "succeeded", "failed")),
}


def _finding(cause: str, subject: str, workload: str, got: str, want: str, do: str) -> Finding:
    return Finding(cause=cause, subject=subject, got=got, want=want, do=do, about=frozenset({workload}))


def _quota(_: Facts, workload: str, match: re.Match[str]) -> Finding:
    requested, used, limited = match["requested"], match["used"], match["limited"]
    resource = requested.partition("=")[0]
    setting = _QUOTA_SETTINGS.get(resource) or ("gpuQuota" if resource.startswith("requests.nvidia.com/") else None)
    raise_it = f"raise modelfleet:governance.{setting}" if setting else f"raise spec.hard of that quota for {resource}"
    return _finding(
        "quota",
        f"ResourceQuota/{match['name']}",
        workload,
        f"{requested} more for {workload} with {used} used",
        f"at most {limited}",
        f"{raise_it}, or lower what {workload} asks for",
    )


def _unspecified(_: Facts, workload: str, match: re.Match[str]) -> Finding:
    return _finding(
        "requests-missing",
        workload,
        workload,
        f"no {one_line(match['what'])}",
        f"them, since ResourceQuota/{match['name']} counts them",
        f"set resources.requests in {workload}, or defaults in a LimitRange",
    )


def _limit_range(facts: Facts, workload: str, match: re.Match[str]) -> Finding:
    return _finding(
        "limit-range",
        workload,
        workload,
        one_line(match["what"]),
        "what the LimitRange of the namespace allows",
        f"change resources of {workload}, or the limits: kubectl describe limitrange -n {facts.snapshot.namespace}",
    )


def _pod_security(facts: Facts, workload: str, match: re.Match[str]) -> Finding:
    name = facts.snapshot.namespace
    level = labels(facts.all("Namespace")[0]).get("pod-security.kubernetes.io/enforce", "restricted")
    return _finding(
        "pod-security",
        workload,
        workload,
        one_line(match["what"]),
        f"what the Pod Security Standard {level} of namespace {name} allows",
        f"set the securityContext of {workload} as the message says",
    )


def _priority(facts: Facts, workload: str, match: re.Match[str]) -> Finding:
    known = ", ".join(sorted(item["metadata"]["name"] for item in facts.all("PriorityClass")))
    return _finding(
        "priority-class-missing",
        f"PriorityClass/{match['name']}",
        workload,
        "none",
        f"it for {workload} (there are {known})",
        "run make up, which makes the fleet's own, or correct priorityClassName",
    )


def _runtime(facts: Facts, workload: str, match: re.Match[str]) -> Finding:
    known = ", ".join(sorted(item["metadata"]["name"] for item in facts.all("RuntimeClass"))) or "none at all"
    return _finding(
        "runtime-class-missing",
        f"RuntimeClass/{match['name']}",
        workload,
        "none",
        f"it for {workload} (there are {known})",
        "set modelfleet:gpu.createRuntimeClass to true, or install the GPU operator that owns it",
    )


def _account(_: Facts, workload: str, match: re.Match[str]) -> Finding:
    return _finding(
        "service-account-missing",
        f"ServiceAccount/{match['name']}",
        workload,
        "none",
        f"it for {workload}",
        "create it, or correct serviceAccountName",
    )


_REFUSALS: tuple[tuple[str, Callable[[Facts, str, re.Match[str]], Finding]], ...] = (
    (r"exceeded quota: (?P<name>\S+), requested: (?P<requested>.+), used: (?P<used>.+), limited: (?P<limited>.+)", _quota),
    (r"failed quota: (?P<name>\S+): must specify (?P<what>.+)", _unspecified),
    (r"violates PodSecurity \"[^\"]+\": (?P<what>.+)", _pod_security),
    (r"no PriorityClass with name (?P<name>\S+) was found", _priority),
    (r"RuntimeClass \"(?P<name>[^\"]+)\" not found", _runtime),
    (r"serviceaccount \"(?P<name>[^\"]+)\" not found", _account),
    (r"is forbidden: (?P<what>\[?(?:maximum|minimum|.*max limit to request).+)", _limit_range),
)
