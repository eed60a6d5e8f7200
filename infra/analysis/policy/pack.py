"""The rules as policies of Pulumi's engine.

There is one mandatory policy for each rule. In a preview some values are not known yet. A rule that looks at such a value fails nothing in
the preview: the advisory policy `undecided` repeats what the rule found. The update and `make preview` know all values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pulumi_policy import EnforcementLevel, Policy, PolicyResource, ReportViolation, StackValidationArgs, StackValidationPolicy
from pulumi_policy.proxy import UnknownValueError

from components.contract import PROTECTED_ANNOTATION
from infra.analysis.policy.objects import title
from infra.analysis.policy.rules import RULES, Rule


class Unknown(str):
    """Stands for a value that is not known yet, and remembers whether a rule looked at it."""

    seen: bool = False

    def __new__(cls) -> "Unknown":
        return super().__new__(cls, "(known after the update)")

    def _look(self) -> str:
        self.seen = True
        return super().__str__()

    def __str__(self) -> str:
        return self._look()

    def __format__(self, spec: str) -> str:
        return format(self._look(), spec)

    def __hash__(self) -> int:
        return hash(self._look())

    def __eq__(self, other: object) -> bool:
        return self._look() == other

    def __bool__(self) -> bool:
        return bool(self._look())


def known(value: Any, unknowns: list[Unknown]) -> Any:
    """`value` as plain dictionaries and lists, with an Unknown (also put into `unknowns`) for what the engine does not know."""
    if isinstance(value, Mapping):
        return {key: _item(value, key, unknowns) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_item(value, index, unknowns) for index in range(len(value))]
    return value


def _item(container: Any, key: Any, unknowns: list[Unknown]) -> Any:
    try:
        return known(container[key], unknowns)
    except UnknownValueError:
        unknowns.append(Unknown())
        return unknowns[-1]


def kubernetes_objects(resources: Sequence[PolicyResource], unknowns: list[Unknown]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(URN, object) of every Kubernetes object of the stack; a claim's protection is the engine's, whatever its annotation says."""
    for resource in resources:
        if not resource.resource_type.startswith("kubernetes:"):
            continue
        item = known(resource.props, unknowns)
        if item.get("kind") == "PersistentVolumeClaim":
            metadata = item.setdefault("metadata", {})
            metadata["annotations"] = {**(metadata.get("annotations") or {}), PROTECTED_ANNOTATION: str(resource.opts.protect).lower()}
        yield resource.urn, item


def judge(rule: Rule, resources: Sequence[PolicyResource]) -> tuple[list[tuple[str, str | None]], bool]:
    """What the rule finds, as (line, URN), and whether it is certain: no value that it looked at is unknown."""
    unknowns: list[Unknown] = []
    found = list(kubernetes_objects(resources, unknowns))
    for unknown in unknowns:
        unknown.seen = False
    try:
        lines = rule([item for _, item in found])
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        if not unknowns:
            raise
        # An unknown stood where the rule needs an object or a number.
        return [
            (f"{rule.__name__}: got {type(error).__name__} on an unknown value, want it known; look again after the update", None)
        ], False
    certain = not any(unknown.seen for unknown in unknowns)
    urns = {title(item): urn for urn, item in found}
    return [(line, urns.get(line.partition(": ")[0])) for line in lines], certain


def _mandatory(rule: Rule) -> Callable[[StackValidationArgs, ReportViolation], None]:
    def validate(args: StackValidationArgs, report: ReportViolation) -> None:
        found, certain = judge(rule, args.resources)
        for line, urn in found if certain else []:
            report(line, urn)

    return validate


def _undecided(args: StackValidationArgs, report: ReportViolation) -> None:
    for rule in RULES:
        found, certain = judge(rule, args.resources)
        if not certain:
            report(f"{rule.__name__}: got values that are known after the update, want them to judge; read make preview too", None)
            for line, urn in found:
                report(line, urn)


def policies() -> list[Policy]:
    """Every policy of the pack."""
    mandatory: list[Policy] = [
        StackValidationPolicy(
            name=rule.__name__.replace("_", "-"),
            description=rule.__name__.replace("_", " "),
            validate=_mandatory(rule),
            enforcement_level=EnforcementLevel.MANDATORY,
        )
        for rule in RULES
    ]
    return [
        *mandatory,
        StackValidationPolicy(
            name="undecided", description="rules that wait for the update", validate=_undecided, enforcement_level=EnforcementLevel.ADVISORY
        ),
    ]
