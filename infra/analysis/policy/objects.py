"""How rules walk over the Kubernetes objects of a stack."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Object = Mapping[str, Any]

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


def title(item: Object) -> str:
    """`<kind>/<name>`: what every violation begins with."""
    return f"{item.get('kind')}/{item.get('metadata', {}).get('name')}"


def annotation(item: Object, key: str) -> Any:
    return (item.get("metadata", {}).get("annotations") or {}).get(key)


def of(objects: Sequence[Object], *kinds: str) -> Iterator[Object]:
    return (item for item in objects if item.get("kind") in kinds)


def templates(objects: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    """(workload, pod template) of everything that makes pods."""
    for item in of(objects, *WORKLOADS):
        yield item, item.get("spec", {}).get("template", {})


def containers(objects: Sequence[Object]) -> Iterator[tuple[Object, Object, Object]]:
    """(workload, pod spec, container), init containers too."""
    for item, template in templates(objects):
        pod = template.get("spec", {})
        for container in all_containers(pod):
            yield item, pod, container


def all_containers(pod: Object) -> list[Object]:
    """Those of a pod spec, init containers first."""
    return [*pod.get("initContainers", []), *pod.get("containers", [])]


def gpus(container: Object) -> bool:
    """Whether it asks for GPUs: as an extended resource, or by a claim."""
    resources = container.get("resources", {})
    return bool(resources.get("claims")) or any(key.startswith("nvidia.com/") for key in resources.get("limits", {}))
