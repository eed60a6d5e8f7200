"""What an update would do to each object, worst first: read from two renderings, without a cluster."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.contract import DATA_LABEL, PROTECTED_ANNOTATION
from infra.program.settings.section import quantity

Object = Mapping[str, Any]
Action = Literal["deleted", "replaced", "refused", "changed", "created"]
ACTIONS: tuple[Action, ...] = ("deleted", "replaced", "refused", "changed", "created")

REPLACED: Mapping[str, tuple[str, ...]] = {
    "ConfigMap": ("data", "binaryData"),
    "DaemonSet": ("spec.selector",),
    "Deployment": ("spec.selector",),
    "Job": ("spec.completions", "spec.parallelism", "spec.selector", "spec.template"),
    "PersistentVolumeClaim": ("spec.accessModes", "spec.selector", "spec.storageClassName", "spec.volumeName"),
    "ResourceQuota": ("spec.scopes",),
    "RoleBinding": ("roleRef",),
    "Secret": ("type", "stringData", "data"),
    "Service": ("spec.clusterIP",),
    "StatefulSet": (
        "spec.podManagementPolicy",
        "spec.revisionHistoryLimit",
        "spec.selector",
        "spec.serviceName",
        "spec.volumeClaimTemplates",
    ),
    "StorageClass": ("parameters", "provisioner"),
}
"""Fields whose change makes Pulumi replace the object. Source: forceNew in diff.go of pulumi-kubernetes 4.25.0."""
_MUTABLE = ("ConfigMap", "Secret")
"""Kinds that change in place unless they say `immutable`: the stack's provider is told so (`enableConfigMapMutable`)."""
IMMUTABLE: Mapping[str, tuple[str, ...]] = {
    "PriorityClass": ("value", "preemptionPolicy"),
    "RuntimeClass": ("handler",),
    "StorageClass": ("reclaimPolicy", "volumeBindingMode"),
}
"""Fields that the API server calls immutable and that our components replace the object for (`replace_on_changes`).
Source: validation of Kubernetes 1.36; a test asks it."""
_RETAINED = f"metadata.labels.{DATA_LABEL}"
_PROTECTED = f"metadata.annotations.{PROTECTED_ANNOTATION}"
_GUARDS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "Namespace": ((_RETAINED, "retain", "nothing"),),
    "PersistentVolumeClaim": ((_PROTECTED, "true", "false"),),
    "StatefulSet": (
        ("spec.persistentVolumeClaimRetentionPolicy.whenDeleted", "Retain", "Retain"),
        ("spec.persistentVolumeClaimRetentionPolicy.whenScaled", "Retain", "Retain"),
    ),
    "StorageClass": (("reclaimPolicy", "Retain", "Delete"),),
}
"""Fields that keep data: the path, the value that does, and what the field means when it is absent."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One field: its path, and what it was and will be; None where it is absent."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True, kw_only=True)
class Change:
    """One object, and what happens to it."""

    title: str
    """`<kind>/<name>`."""
    action: Action
    loses_data: str
    """Why data may be lost, or empty."""
    differences: tuple[Difference, ...] = ()


def differences(old: Any, new: Any, path: str = "") -> Iterator[Difference]:
    """Every leaf that differs. List elements with names, such as containers and environment variables, are compared by name."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys(), key=str):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(old, list) and isinstance(new, list) and (by_name := _named(old, new)) is not None:
        for name in dict.fromkeys([*by_name[0], *by_name[1]]):
            yield from differences(by_name[0].get(name), by_name[1].get(name), f"{path}[{name}]")
    elif old != new:
        yield Difference(path=path, old=old, new=new)


def _named(*lists: list[Any]) -> list[dict[str, Any]] | None:
    """The elements by their names, unless some have none or share one."""
    tables: list[dict[str, Any]] = []
    for elements in lists:
        names = [element.get("name") if isinstance(element, Mapping) else None for element in elements]
        if None in names or len(set(names)) != len(names):
            return None
        tables.append(dict(zip(map(str, names), elements, strict=True)))
    return tables


def _below(path: str, prefixes: Sequence[str]) -> bool:
    return any(path == prefix or path.startswith((f"{prefix}.", f"{prefix}[")) for prefix in prefixes)


def _shrinks(kind: str, difference: Difference) -> bool:
    """Whether a claim would get smaller, which the API server refuses."""
    sizes = difference.old, difference.new
    if (kind, difference.path) != ("PersistentVolumeClaim", "spec.resources.requests.storage") or None in sizes:
        return False
    return quantity(str(difference.new)) < quantity(str(difference.old))


def _identity(item: Object) -> tuple[str, str, str]:
    metadata = item.get("metadata", {})
    return str(item.get("kind")), str(metadata.get("namespace", "")), str(metadata.get("name"))


def _at(item: Object, path: str, absent: Any = None) -> Any:
    """The value at a path; keys of labels and annotations have dots themselves."""
    value: Any = item
    parts = path.split(".", 2) if path.startswith("metadata.") else path.split(".")
    for part in parts:
        value = value.get(part) if isinstance(value, Mapping) else None
    return absent if value is None else value


def _loss(old: Object, new: Object | None, action: Action) -> str:
    """Why stored data may be lost by the action; empty if it is kept."""
    kind = old.get("kind")
    for path, keeps, absent in _GUARDS.get(str(kind), ()):
        if new is not None and _at(old, path, absent) == keeps != _at(new, path, absent):
            return f"{path} no longer says {keeps}"
    if action not in ("deleted", "replaced"):
        return ""
    if kind in ("PersistentVolumeClaim", "PersistentVolume", "Namespace"):
        kept = _at(old, _PROTECTED) == "true" or _at(old, _RETAINED) == "retain"
        return "what it holds goes with it" + ("; it is protected, so that Pulumi refuses or leaves it" if kept else "")
    if kind == "StatefulSet" and "Delete" in _at(old, "spec.persistentVolumeClaimRetentionPolicy", {}).values():
        return "its claims go with it"
    if kind == "StorageClass" and old.get("reclaimPolicy", "Delete") == "Delete":
        return "its volumes are deleted with their claims"
    return ""


def _compare(old: Object, new: Object) -> Change | None:
    found = tuple(differences(old, new))
    if not found:
        return None
    kind = str(old.get("kind"))
    action: Action = "changed"
    in_place = kind in _MUTABLE and not new.get("immutable")
    if any(_below(each.path, (*(REPLACED.get(kind, ()) if not in_place else ()), *IMMUTABLE.get(kind, ()))) for each in found):
        action = "replaced"
    elif any(_shrinks(kind, each) for each in found):
        action = "refused"
    return Change(title=_title(old), action=action, loses_data=_loss(old, new, action), differences=found)


def _title(item: Object) -> str:
    return f"{item.get('kind')}/{item.get('metadata', {}).get('name')}"


def compare(old: Sequence[Object], new: Sequence[Object]) -> list[Change]:
    """Every object that is not the same in both renderings: what may lose data first, then by what happens to it, then by name."""
    before = {_identity(item): item for item in old}
    after = {_identity(item): item for item in new}
    found: list[Change] = []
    for identity in before.keys() | after.keys():
        if identity not in after:
            gone = before[identity]
            found.append(Change(title=_title(gone), action="deleted", loses_data=_loss(gone, None, "deleted")))
        elif identity not in before:
            found.append(Change(title=_title(after[identity]), action="created", loses_data=""))
        elif change := _compare(before[identity], after[identity]):
            found.append(change)
    return sorted(found, key=lambda change: (not change.loses_data, ACTIONS.index(change.action), change.title))
