"""What an update would do, read from `pulumi preview --json` before it runs: which changes lose data, and what drifted."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_REMOVING = ("delete", "replace", "delete-replaced")


class DataLossError(Exception):
    """The update would delete data that nobody said may go. One line an object: `<Kind/name>: got X, want Y; do Z`."""


@dataclass(frozen=True)
class Step:
    """One step of a preview."""

    op: str
    urn: str
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    reasons: tuple[str, ...]
    """Paths of the properties that force a replacement, or that differ."""

    @property
    def kind(self) -> str:
        return self.urn.split("::")[2].rpartition(":")[2]

    @property
    def object(self) -> str:
        """`Kind/name`, as kubectl says it; the logical name where there is no object."""
        inputs = self.old.get("inputs") or self.new.get("inputs") or {}
        return f"{self.kind}/{(inputs.get('metadata') or {}).get('name', self.urn.rpartition('::')[2])}"


def _read(preview: str) -> tuple[list[Step], list[Step]]:
    """(what a refresh found, what the update would do). The second part begins with the stack itself."""
    found = [
        Step(
            op=each["op"],
            urn=each["urn"],
            old=each.get("oldState") or {},
            new=each.get("newState") or {},
            reasons=tuple(each.get("replaceReasons") or each.get("detailedDiff") or ()),
        )
        for each in json.loads(preview).get("steps", [])
    ]
    start = max((index for index, step in enumerate(found) if step.kind == "Stack"), default=0)
    return found[:start], found[start:]


def steps(preview: str) -> list[Step]:
    """What the update would do, from the JSON of `pulumi preview`."""
    return _read(preview)[1]


def drift(preview: str) -> list[str]:
    """One line for every object that was changed or removed by hand, from the JSON of `pulumi preview --refresh`."""
    lines: list[str] = []
    for step in _read(preview)[0]:
        if step.op == "delete":
            lines.append(f"{step.object}: removed by hand; making it again")
        elif step.op == "update":
            lines.append(f"{step.object}: {', '.join(sorted(step.reasons))} changed by hand; setting it back")
    return lines


def _loss(step: Step) -> str | None:
    """What is lost when the old object goes, or None.

    A StorageClass holds nothing: its volumes outlive it. What `retainOnDelete` says stays in the cluster.
    """
    if step.old.get("retainOnDelete"):
        return None
    if step.kind == "PersistentVolumeClaim":
        return "the models on its volume"
    if step.kind == "Namespace":
        return "everything in it"
    if step.kind == "StatefulSet":
        spec = (step.old.get("inputs") or {}).get("spec") or {}
        policy = spec.get("persistentVolumeClaimRetentionPolicy") or {}
        return "its replicas' volumes" if spec.get("volumeClaimTemplates") and policy.get("whenDeleted") == "Delete" else None
    return None


def refuse_data_loss(planned: Iterable[Step], allowed: Iterable[str]) -> None:
    """Raise DataLossError for every object whose data would go and that `allowed` (`Kind/name`) does not name."""
    lines: dict[str, str] = {}
    for step in planned:
        lost = _loss(step) if step.op in _REMOVING else None
        if lost and step.object not in set(allowed):
            why = f" ({', '.join(step.reasons)} cannot change in place)" if step.reasons else ""
            lines[step.object] = (
                f"{step.object}: got a change that deletes it and {lost}{why}, want it kept; "
                f"undo the change, or copy what you need and run make up ALLOW_DATA_LOSS={step.object}"
            )
    if lines:
        raise DataLossError("\n".join(lines.values()))


def anything(planned: Iterable[Step]) -> bool:
    """Whether an update would do anything."""
    return any(step.op not in ("same", "read") for step in planned)
