"""What an update would do, read from the events of a preview before it runs: which changes lose data, and what drifted."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pulumi.automation.events import OpType, StepEventMetadata

from components.contract import DATA_LABEL, MODEL_SERVER, PROMETHEUS, kind_of
from infra.engine.operation import Told
from infra.program.settings.section import quantity

_REMOVING = ("delete", "replace", "delete-replaced")


class RefusedError(Exception):
    """An update was refused before it began. The message has one line for each object: `<Kind/name>: got X, want Y; do Z`."""


class DataLossError(RefusedError):
    """The update would delete data, and the user did not allow it."""


class ImpossibleError(RefusedError):
    """The cluster would refuse the update halfway, or the update would not change what it should."""


@dataclass(frozen=True)
class Step:
    """One step of a preview."""

    op: str
    urn: str
    inputs: Mapping[str, Any]
    """The object as it is now; after a refresh, as the cluster has it."""
    wanted: Mapping[str, Any]
    """The object as the program wants it."""
    live: Mapping[str, Any] = field(default_factory=dict)
    """Everything that the provider knows of the object as it is now."""
    reasons: tuple[str, ...] = ()
    """Paths of the properties that force a replacement, or that differ."""
    retained: bool = False
    """Whether the object stays in the cluster when it leaves the stack."""

    @property
    def kind(self) -> str:
        return self.urn.split("::")[2].rpartition(":")[2]

    @property
    def object(self) -> str:
        """`Kind/name`, as kubectl names the object; the logical name where the step is of no object."""
        inputs = self.inputs or self.wanted
        return f"{self.kind}/{(inputs.get('metadata') or {}).get('name', self.urn.rpartition('::')[2])}"


@dataclass(frozen=True)
class Plan:
    """What a preview says."""

    steps: list[Step]
    """The changes of the update. Objects that stay the same are not in it."""
    recorded: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """URN to the inputs of the last update, for every object that the refresh read."""
    errors: list[tuple[str, str]] = field(default_factory=list)
    """(URN or nothing, message)"""
    policy_packs: Mapping[str, str] = field(default_factory=dict)
    """Name to version of those that passed it."""

    def drift(self) -> list[str]:
        """One line for every object that was changed or removed by hand: the program wants the same as before, and yet there is a step."""
        lines: list[str] = []
        for step in self.steps:
            if step.urn in self.recorded and self.recorded[step.urn] == step.wanted:
                if step.op == "create":
                    lines.append(f"{step.object}: removed by hand; making it again")
                elif step.op in ("update", "replace"):
                    lines.append(f"{step.object}: {', '.join(_changed(step))} changed by hand; setting it back")
        return lines

    def lines(self) -> list[str]:
        """A line for every object of the cluster that would change."""
        return [line(step) for step in self.steps if step.urn.split("::")[2].rpartition("$")[2].startswith("kubernetes:")]

    def removed(self, objects: Collection[str]) -> set[str]:
        """URNs of these objects (`Kind/name`) that the update would delete or replace."""
        return {step.urn for step in self.steps if step.op in _REMOVING and step.object in objects}


def line(step: Step) -> str:
    """What would be done to the object, and in which fields."""
    sign = {"create": "+", "update": "~", "replace": "+-", "delete": "-"}.get(step.op, step.op)
    fields = f": {', '.join(_changed(step))}" if step.op in ("update", "replace") else ""
    return f"{sign:2} {step.object}{fields}"


_OTHER = (OpType.REFRESH, OpType.SAME, OpType.READ, OpType.CREATE_REPLACEMENT)
"""Steps that change nothing, and the half of a replacement that takes nothing away."""


def read(told: Told) -> Plan:
    """What the events of a preview said, with or without a refresh, also when it failed."""
    replaced = {each.urn for each in told.steps if each.op == OpType.REPLACE}
    begun = [each for each in told.steps if each.op not in _OTHER and not (each.op == OpType.DELETE_REPLACED and each.urn in replaced)]
    return Plan(
        steps=[_step(each) for each in begun],
        recorded={each.urn: each.old.inputs or {} for each in told.steps if each.op == OpType.REFRESH and each.old},
        errors=told.errors,
        policy_packs=told.packs,
    )


def _step(found: StepEventMetadata) -> Step:
    old, new = found.old, found.new
    return Step(
        op=found.op.value,
        urn=found.urn,
        inputs=(old and old.inputs) or {},
        wanted=(new and new.inputs) or {},
        live=(old and old.outputs) or {},
        reasons=tuple(found.keys or found.detailed_diff or ()),
        retained=bool(old and old.retain_on_delete),
    )


def _changed(step: Step) -> list[str]:
    """Paths of the fields that differ: those that the provider names, or else those whose values are not what the program wants.

    When only the owner of a field changed, no value differs. Owners are kept in the managed fields, so these are returned then.
    """
    found = sorted(step.reasons) or _differing(step.wanted, step.inputs) or (_differing(step.wanted, step.live) if step.live else [])
    return found or ["metadata.managedFields"]


def _differing(want: Any, have: Any, path: str = "") -> list[str]:
    """Paths of the values in `want` that `have` lacks or has differently. Values that only `have` has do not count."""
    if isinstance(want, Mapping) and isinstance(have, Mapping):
        return [each for name in want for each in _differing(want[name], have.get(name), f"{path}.{name}" if path else name)]
    if isinstance(want, list) and isinstance(have, list) and len(want) == len(have):
        return [each for index, item in enumerate(want) for each in _differing(item, have[index], f"{path}[{index}]")]
    return [] if want == have else [path]


def _loss(step: Step) -> str | None:
    """What is lost when the old object goes, or None.

    A StorageClass holds no data: volumes stay when their class goes. An object with `retainOnDelete` stays in the cluster.
    """
    if step.retained:
        return None
    if step.kind == "PersistentVolumeClaim":
        return "the metrics on its volume" if step.object == f"PersistentVolumeClaim/{PROMETHEUS}" else "the models on its volume"
    if step.kind == "Namespace":
        labels = (step.inputs.get("metadata") or {}).get("labels") or {}
        return None if labels.get(DATA_LABEL) == "none" else "everything in it"
    if step.kind == "StatefulSet":
        if step.op == "delete" and kind_of(step.object.partition("/")[2]) == MODEL_SERVER:
            # Nobody asks for it any more, and its copy is of the shared store.
            return None
        spec = step.inputs.get("spec") or {}
        policy = spec.get("persistentVolumeClaimRetentionPolicy") or {}
        return "its replicas' volumes" if spec.get("volumeClaimTemplates") and policy.get("whenDeleted") == "Delete" else None
    return None


def refuse_data_loss(plan: Plan, allowed: Collection[str]) -> None:
    """Raise DataLossError for every object whose data would go and that `allowed` (`Kind/name`) does not name."""
    lines: dict[str, str] = {}
    for step in plan.steps:
        lost = _loss(step) if step.op in _REMOVING else None
        if lost and step.object not in allowed:
            why = f" ({', '.join(step.reasons)} cannot change in place)" if step.reasons else ""
            lines[step.object] = (
                f"{step.object}: got a change that deletes it and {lost}{why}, want it kept; "
                f"undo the change, or copy what you need and run make up ALLOW_DATA_LOSS={step.object}"
            )
    if lines:
        raise DataLossError("\n".join(lines.values()))


def refuse_the_impossible(plan: Plan, allowed: Collection[str]) -> None:
    """Raise ImpossibleError for every claim that cannot get its size.

    `allowed` (`Kind/name`): objects whose claims the user has changed by hand.
    """
    lines = {step.object: line for step in plan.steps if (line := _impossible(step, plan)) and step.object not in allowed}
    if lines:
        raise ImpossibleError("\n".join(lines.values()))


def _impossible(step: Step, plan: Plan) -> str | None:
    if step.kind == "PersistentVolumeClaim" and step.op == "update":
        have, want = _size(step.inputs), _size(step.wanted)
        name = (step.wanted.get("spec") or {}).get("storageClassName")
        if quantity(want) < quantity(have):
            return f"{step.object}: got {want}, want at least the {have} that it has: no claim shrinks; set its size back"
        if quantity(want) > quantity(have) and any(_forbids_growth(each, name) for each in plan.steps):
            return (
                f"{step.object}: got {want} after {have} in a StorageClass without allowVolumeExpansion, want one that has it; "
                f"run kubectl patch storageclass {name} -p '{{\"allowVolumeExpansion\":true}}', then make up again"
            )
    kept = ((step.inputs.get("spec") or {}).get("persistentVolumeClaimRetentionPolicy") or {}).get("whenDeleted") == "Retain"
    if step.kind == "StatefulSet" and step.op in _REMOVING and kept and any("volumeClaimTemplates" in each for each in step.reasons):
        return (
            f"{step.object}: got other volumeClaimTemplates, which stop all its replicas and leave their claims as they are, want the "
            f"claims changed first; grow them with kubectl edit pvc, then run make up ALLOW_DATA_LOSS={step.object}, or undo the change"
        )
    return None


def _size(claim: Mapping[str, Any]) -> str:
    return str((((claim.get("spec") or {}).get("resources") or {}).get("requests") or {}).get("storage", "0"))


def _forbids_growth(step: Step, name: str | None) -> bool:
    """Whether the step is of that class, and the class as it is in the cluster lets no claim grow."""
    inputs = step.inputs
    return step.kind == "StorageClass" and (inputs.get("metadata") or {}).get("name") == name and not inputs.get("allowVolumeExpansion")
