"""The objects that a state has, which of them `pulumi destroy` leaves, and how long an update may wait for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WAIT_S = 600.0
"""Of objects that say nothing else: the default of Pulumi's Kubernetes provider."""


@dataclass(frozen=True, order=True)
class Recorded:
    """An object of the cluster that a stack has made."""

    name: str
    """Kind/name"""
    stays: bool
    """It is protected, or one that is protected needs it."""


def objects(resources: Sequence[Mapping[str, Any]]) -> list[Recorded]:
    """Every object among the resources of an exported state, sorted."""
    by_urn = {each["urn"]: each for each in resources}
    left = [each["urn"] for each in resources if each.get("protect")]
    stay: set[str] = set()
    while left:
        urn = left.pop()
        if urn in by_urn and urn not in stay:
            stay.add(urn)
            left += _needs(by_urn[urn])
    return sorted(
        Recorded(f"{each['type'].rpartition(':')[2]}/{each['id'].rpartition('/')[2]}", each["urn"] in stay)
        for each in resources
        if each["type"].startswith("kubernetes:") and each.get("id")
    )


def longest_wait_s(resources: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that Pulumi may wait for the slowest object among the resources of an exported state."""
    return max((float((each.get("customTimeouts") or {}).get("update") or _WAIT_S) for each in resources), default=_WAIT_S)


def _needs(resource: Mapping[str, Any]) -> Iterator[str]:
    """URNs of what must be there as long as the resource is."""
    yield from (resource.get("parent") or "", (resource.get("provider") or "").rpartition("::")[0])
    yield from resource.get("dependencies") or ()
    for urns in (resource.get("propertyDependencies") or {}).values():
        yield from urns or ()
