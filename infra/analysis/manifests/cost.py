"""The resources that a rendering asks a cluster for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from infra.program.settings.section import quantity

Object = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Sums over everything that runs for ever. A Job ends, and a DaemonSet's pods are counted for one node."""

    gpus: float = 0
    cpu: float = 0
    """Cores."""
    memory: float = 0
    """Bytes."""
    storage: float = 0
    """Bytes of all claims."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(Cost)})

    def times(self, count: float) -> "Cost":
        return Cost(**{each.name: getattr(self, each.name) * count for each in fields(Cost)})


def _requests(container: Mapping[str, Any]) -> Cost:
    requests = container.get("resources", {}).get("requests", {})
    gpus = sum(float(value) for key, value in requests.items() if key.startswith("nvidia.com/"))
    return Cost(gpus=gpus, cpu=quantity(str(requests.get("cpu", "0"))), memory=quantity(str(requests.get("memory", "0"))))


def pod(spec: Mapping[str, Any]) -> Cost:
    """What the scheduler reserves: containers and sidecars together, or the largest init container where that is more."""
    sidecars = [each for each in spec.get("initContainers", []) if each.get("restartPolicy") == "Always"]
    total = sum((_requests(each) for each in [*spec.get("containers", []), *sidecars]), Cost())
    first = [_requests(each) for each in spec.get("initContainers", [])]
    return Cost(**{each.name: max([getattr(total, each.name), *(getattr(one, each.name) for one in first)]) for each in fields(Cost)})


def _claim(spec: Mapping[str, Any]) -> Cost:
    return Cost(storage=quantity(str(spec["resources"]["requests"]["storage"])))


def _claimed(objects: Sequence[Object]) -> dict[str, float]:
    """ResourceClaimTemplate to the devices that each pod which names it gets."""
    return {
        item["metadata"]["name"]: sum(
            float(each.get("exactly", {}).get("count", 1)) for each in item["spec"]["spec"]["devices"]["requests"]
        )
        for item in objects
        if item["kind"] == "ResourceClaimTemplate"
    }


def _costs(objects: Sequence[Object]) -> Iterator[Cost]:
    claimed = _claimed(objects)
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            replicas = float(spec.get("replicas", 1))
            template = spec["template"]["spec"]
            gpus = sum(claimed.get(each.get("resourceClaimTemplateName", ""), 0) for each in template.get("resourceClaims", []))
            yield (pod(template) + Cost(gpus=gpus)).times(replicas)
            yield from (_claim(each["spec"]).times(replicas) for each in spec.get("volumeClaimTemplates", []))
        elif item["kind"] == "PersistentVolumeClaim":
            yield _claim(spec)


def total(objects: Sequence[Object]) -> Cost:
    """Sums over all objects of a stack."""
    return sum(_costs(objects), Cost())
