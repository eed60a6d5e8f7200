"""Where pods go: nodes, GPUs, labels, taints and room."""

import re
from collections.abc import Callable, Iterator

from infra.analysis.explain.facts import Facts, Finding, key, labels, one_line
from infra.analysis.explain.snapshot import Object
from infra.program.settings.section import quantity

_SHOWN = 8
"""Nodes that a sentence names."""
_SELF_INFLICTED = "node.kubernetes.io/"
"""Taints that Kubernetes sets when a node has a problem. The problem is a finding of its own."""


def nodes(facts: Facts) -> Iterator[Finding]:
    """Nodes that are not ready or under pressure."""
    pods: dict[str, list[str]] = {}
    for pod in facts.all("Pod"):
        pods.setdefault(pod["spec"].get("nodeName", ""), []).append(key(pod, "Pod"))
    for node in facts.all("Node"):
        conditions = {each["type"]: each for each in node["status"].get("conditions", [])}
        ready = conditions.get("Ready", {"status": "Unknown", "reason": "no condition"})
        name = node["metadata"]["name"]
        on_it = frozenset(pods.get(name, ()))
        if ready["status"] != "True":
            reason = one_line(": ".join(part for part in (ready.get("reason"), ready.get("message")) if part))
            yield Finding(
                cause="node-not-ready",
                subject=key(node, "Node"),
                got=f"Ready={ready['status']} ({reason})",
                want="True",
                do=f"start its kubelet again (make up does on the embedded cluster), or move its pods: kubectl drain {name}",
                about=frozenset({key(node, "Node")}),
                covers=on_it | {"soft:nodes"},
            )
        for pressure in ("MemoryPressure", "DiskPressure", "PIDPressure"):
            if conditions.get(pressure, {}).get("status") == "True":
                yield Finding(
                    cause="node-pressure",
                    subject=key(node, "Node"),
                    got=f"{pressure} ({one_line(conditions[pressure].get('message', ''))})",
                    want="room for its pods",
                    do=f"free some on {name}: kubectl describe node {name}",
                    about=frozenset({key(node, "Node")}),
                )


def gpu_nodes(facts: Facts) -> Iterator[Finding]:
    """Nodes that a RuntimeClass of the stack's pods goes to, and whose kubelet has no GPU to give. Claims have devices of their own."""
    pods = [pod for pod in facts.all("Pod") if not pod["spec"].get("resourceClaims")]
    names = {pod["spec"].get("runtimeClassName") for pod in pods if _gpus(pod)}
    selectors = [((facts.find("RuntimeClass", name) or {}).get("scheduling") or {}).get("nodeSelector") for name in names if name]
    for node in facts.all("Node"):
        wanted = any(selector and selector.items() <= labels(node).items() for selector in selectors)
        allocatable = node["status"].get("allocatable", {})
        if wanted and not any(name.startswith("nvidia.com/") and count != "0" for name, count in allocatable.items()):
            yield Finding(
                cause="gpu-node",
                subject=key(node, "Node"),
                got="the labels of a GPU node, and no resource of nvidia.com",
                want="its GPUs",
                do="see which layer it lacks: make check CONTEXT=…, and docs/gpu-nodes.md",
                about=frozenset({key(node, "Node")}),
            )


def _gpus(pod: Object) -> bool:
    asked = [name for each in pod["spec"]["containers"] for name in each.get("resources", {}).get("limits", {})]
    return any(name.startswith("nvidia.com/") for name in asked)


def unschedulable(facts: Facts) -> Iterator[Finding]:
    """Pods that fit no node. The reason is the scheduler's; the advice comes from a look at the nodes."""
    known: dict[tuple[str, str], _Why] = {}
    for pod in facts.live_pods():
        conditions = [each for each in pod["status"].get("conditions", []) if each["type"] == "PodScheduled" and each["status"] == "False"]
        if not conditions:
            continue
        message = conditions[0].get("message", "")
        reasons = one_line(re.sub(r"^\d+/\d+ nodes are available: |[.,] (?:no new claims to deallocate|preemption:).*$", "", message))
        subject = facts.workload(pod)
        if (subject, reasons) not in known:
            known[subject, reasons] = _why_unplaced(facts, pod, reasons)
        cause, got, want, do = known[subject, reasons]
        about = frozenset({key(pod, "Pod")} | ({"soft:nodes"} if cause == "node-taints" else set()))
        yield Finding(cause=cause, subject=subject, got=got, want=want, do=do, about=about)


_Why = tuple[str, str, str, str]
"""(cause, got, want, do)"""


def _why_unplaced(facts: Facts, pod: Object, reasons: str) -> _Why:
    """The first of the scheduler's reasons that a person has to act on."""
    for pattern, explain in _REASONS:
        match = re.search(pattern, reasons)
        found = explain(facts, pod, reasons, match) if match else None
        if found:
            return found
    return "unschedulable", reasons or "no node", "a node for it", f"kubectl describe pod {pod['metadata']['name']}"


def _no_claim(_: Facts, __: Object, ___: str, match: re.Match[str]) -> _Why:
    do = "run make up, which makes the fleet's claims, or correct the name"
    return "claim-missing", f"no PersistentVolumeClaim {match[1]}", "it", do


def _volume_elsewhere(_: Facts, __: Object, reasons: str, ___: re.Match[str]) -> _Why:
    do = "bring that node back, or delete the claim so that the copy is made anew elsewhere"
    return "volume-node", reasons, "the node that its volume is on", do


def _cordoned(_: Facts, __: Object, reasons: str, ___: re.Match[str]) -> _Why:
    return "nodes-cordoned", reasons, "a node that takes pods", "kubectl uncordon one of them"


def _requested(pod: Object, resource: str) -> str:
    asks = [each.get("resources", {}).get("requests", {}).get(resource) for each in pod["spec"]["containers"]]
    return next((ask for ask in asks if ask), "some")


def _device(facts: Facts, pod: Object, _: str, match: re.Match[str]) -> _Why:
    resource = match[1]
    have = {node["metadata"]["name"]: int(node["status"].get("allocatable", {}).get(resource, 0)) for node in facts.all("Node")}
    wanted = _requested(pod, resource)
    if not any(have.values()):
        got = f"no {resource} on any of {len(have)} nodes"
        do = "install the GPU operator or device plugin on the GPU nodes, or set modelfleet:fleet.gpusPerPod to 0"
        if resource != "nvidia.com/gpu" and resource.startswith("nvidia.com/"):
            # The operator watches no sharing configuration.
            restart = "kubectl -n gpu-operator rollout restart daemonset/nvidia-device-plugin-daemonset"
            do = f"name the sharing configuration to the GPU operator (docs/gpu-nodes.md), or have its plugin read a changed one: {restart}"
        return "no-gpu", got, f"{wanted} on one node", do
    having = [f"{name}: {count}" for name, count in have.items() if count]
    more = f" and {len(having) - _SHOWN} more" if len(having) > _SHOWN else ""
    shown = ", ".join(having[:_SHOWN]) + more
    do = "add GPU nodes, or lower modelfleet:fleet.replicas or gpusPerPod"
    return "gpus-taken", f"no free {resource} (nodes have {shown})", f"{wanted} free on one node", do


def _selector(facts: Facts, pod: Object, reasons: str, _: re.Match[str]) -> _Why | None:
    selector: dict[str, str] = pod["spec"].get("nodeSelector") or {}
    runtime = facts.find("RuntimeClass", pod["spec"].get("runtimeClassName", "")) or {}
    from_runtime = (runtime.get("scheduling") or {}).get("nodeSelector") or {}
    lacking = {name: value for name, value in selector.items() if not any(labels(node).get(name) == value for node in facts.all("Node"))}
    if selector and any(selector.items() <= labels(node).items() for node in facts.all("Node")):
        return None  # Some node has the labels: what keeps the pod off that one is among the other reasons.
    shown = ", ".join(f"{name}={value}" for name, value in (lacking or selector).items())
    if not shown:
        return "node-selector", reasons, "a node that fits its affinity", f"kubectl describe pod {pod['metadata']['name']}"
    label = f"label one: kubectl label node <name> {shown.replace(', ', ' ')}"
    if from_runtime.items() & lacking.items():
        label = f"install GPU feature discovery, or {label}"
    return "node-selector", f"no node with {shown} that takes it", f"one for {key(pod, 'Pod')}", label


def _taints(facts: Facts, pod: Object, reasons: str, _: re.Match[str]) -> _Why | None:
    tolerations = pod["spec"].get("tolerations") or []
    wanted = (pod["spec"].get("nodeSelector") or {}).items()
    fitting = [node for node in facts.all("Node") if wanted <= labels(node).items()]
    found = {
        f"{taint['key']}={taint.get('value', '')}:{taint['effect']}".replace("=:", ":"): taint["key"]
        for node in fitting
        for taint in _untolerated(node, tolerations)
    }
    if not all(_untolerated(node, tolerations) for node in fitting):
        return None  # Some node is open to it: what is lacking there is among the other reasons.
    foreign = [shown for shown, name in found.items() if not name.startswith(_SELF_INFLICTED)]
    if not foreign:
        return "node-taints", reasons, "a node without them", "see to those nodes: kubectl get nodes"
    do = f"add a toleration to the pod, or take the taint off: kubectl taint node <name> {foreign[0]}-"
    return "taint", f"only nodes with the taint {', '.join(foreign)} left ({reasons})", "a node whose taints it tolerates", do


def _untolerated(node: Object, tolerations: list[Object]) -> list[Object]:
    return [
        taint
        for taint in node["spec"].get("taints", [])
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerates(each, taint) for each in tolerations)
    ]


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return (toleration.get("key"), toleration.get("value") or "") == (taint["key"], taint.get("value") or "")


def _room(facts: Facts, pod: Object, reasons: str, match: re.Match[str]) -> _Why:
    resource = match[1]
    sizes = [node["status"].get("allocatable", {}).get(resource, "0") for node in facts.all("Node")]
    largest = max(sizes, key=_amount, default="0")
    wanted = _requested(pod, resource)
    setting = facts.setting(pod, f"resources.{resource}")
    return f"no-{resource}", reasons, f"{wanted} free on one node (the largest has {largest} in all)", f"lower {setting}, or add nodes"


_REASONS: tuple[tuple[str, Callable[[Facts, Object, str, re.Match[str]], _Why | None]], ...] = (
    (r"persistentvolumeclaim \"([^\"]+)\" not found", _no_claim),
    (r"Insufficient (\S+/[^\s,]*[^\s,.])", _device),
    (r"Pod's node affinity|node selector", _selector),
    (r"untolerated taint", _taints),
    (r"Insufficient (cpu|memory|ephemeral-storage|pods)", _room),
    (r"volume node affinity", _volume_elsewhere),
    (r"unschedulable", _cordoned),
)


def _amount(text: str) -> float:
    try:
        return quantity(text)
    except ValueError:
        return 0.0
