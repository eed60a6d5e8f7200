"""Rules on quotas, priorities and GPUs: what pods may ask for, and which of them go first. rules.py lists them."""

from collections.abc import Sequence

from components.contract import GPU_NODES, RUNTIME_ANNOTATION
from infra.analysis.policy.objects import Object, annotation, containers, gpus, of, templates, title


def gpu_pods_use_the_gpu_runtime(objects: Sequence[Object]) -> list[str]:
    found: list[str] = []
    for item, pod, container in containers(objects):
        runtime = pod.get("runtimeClassName") or annotation(item, RUNTIME_ANNOTATION) == "node-default"
        if gpus(container) and not (runtime and pod.get("priorityClassName")):
            found.append(f"{title(item)}: got a GPU without runtimeClassName and priorityClassName, want both; set them")
    return found


def runtime_classes_find_gpu_nodes(objects: Sequence[Object]) -> list[str]:
    """GPU feature discovery labels nodes `nvidia.com/gpu.present=true`; `nvidia.com/gpu=present` is the form of a taint."""
    return [
        f"{title(item)}: got node selector {item.get('scheduling', {}).get('nodeSelector')}, want nvidia.com/gpu.present=true; correct it"
        for item in of(objects, "RuntimeClass")
        for key, value in (item.get("scheduling", {}).get("nodeSelector") or {}).items()
        if key == "nvidia.com/gpu" or value != GPU_NODES.get(key, value)
    ]


def gpus_are_under_a_quota(objects: Sequence[Object]) -> list[str]:
    """Where a namespace has quotas, one counts the GPUs that its pods ask for. The quota of a scope counts for that scope alone."""
    quotas: dict[str, set[str]] = {}
    for item in of(objects, "ResourceQuota"):
        known = quotas.setdefault(item["metadata"].get("namespace", ""), set())
        if not item["spec"].get("scopeSelector"):
            known.update(item["spec"].get("hard", {}))
    return [
        f"{title(item)}: got {key}, which no ResourceQuota counts, want requests.{key} in one; set governance.gpuQuota"
        for item, _, container in containers(objects)
        for key in container.get("resources", {}).get("limits", {})
        if key.startswith("nvidia.com/") and f"requests.{key}" not in quotas.get(item["metadata"].get("namespace", ""), {f"requests.{key}"})
    ]


def quotas_count_what_exists(objects: Sequence[Object]) -> list[str]:
    """`limits.<extended resource>` is accepted and never counted."""
    return [
        f"{title(item)}: got {key}, want requests.{key.removeprefix('limits.')}; extended resources are counted by requests only"
        for item in of(objects, "ResourceQuota")
        for key in item["spec"].get("hard", {})
        if key.startswith("limits.") and "/" in key
    ]


def quotas_come_with_defaults(objects: Sequence[Object]) -> list[str]:
    """Under a quota on CPU or memory, a pod without requests is refused."""
    defaulted = {
        key
        for item in of(objects, "LimitRange")
        for limit in item["spec"]["limits"]
        for key in limit.get("defaultRequest", {})
    }  # fmt: skip
    return [
        f"{title(item)}: got {key} without a default request, want one; add it to the LimitRange"
        for item in of(objects, "ResourceQuota")
        for key in item["spec"].get("hard", {})
        if key in ("requests.cpu", "requests.memory") and key.removeprefix("requests.") not in defaulted
    ]


def no_container_gets_a_gpu_by_default(objects: Sequence[Object]) -> list[str]:
    """Kubernetes takes a container's maximum for its default limit where none is named, so a maximum needs a default of 0."""
    return [
        f"{title(item)}: got a default of {key}, want none; every container would take one"
        for item in of(objects, "LimitRange")
        for limit in item["spec"]["limits"]
        for key, value in {**limit.get("max", {}), **limit.get("default", {}), **limit.get("defaultRequest", {})}.items()
        if "/" in key and str(value) != "0"
    ]


def priorities_are_tiered(objects: Sequence[Object]) -> list[str]:
    """Three tiers: the API server above, the servers of models in the middle, batch work below.

    Pods of the middle class may evict other pods. So there must be a class above it, or they could evict the API server, and a class
    below it whose own pods evict nothing. The highest class is that of the API server, and needs no class above it.
    """
    classes = sorted(of(objects, "PriorityClass"), key=lambda item: item["value"])
    found: list[str] = []
    for item in classes[:-1] or classes:
        above = [each for each in classes if each["value"] > item["value"]]
        waiting = [each for each in classes if each["value"] < item["value"] and each.get("preemptionPolicy") == "Never"]
        if item.get("preemptionPolicy") != "Never" and not (above and waiting):
            found.append(f"{title(item)}: got no gateway class above or no waiting class below, want three tiers; add them")
    for item, template in templates(objects):
        name = template.get("spec", {}).get("priorityClassName")
        if name and classes and name not in {each["metadata"]["name"] for each in classes}:
            found.append(f"{title(item)}: got priorityClassName {name}, want a class of the stack; define or correct it")
    return found
