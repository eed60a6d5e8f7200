"""What the stack did not make stays what it is: each object that would be created is looked up first, in a preview as well.

The provider creates by server-side apply, which takes over an object that is there already. The stack would delete it later.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import pulumi
import pulumi_kubernetes as k8s

from components.contract import PART_OF, STACK_ANNOTATION
from infra.program.settings.cluster import ClusterSettings

if TYPE_CHECKING:
    # A rendering asks no cluster, and need not import the client.
    from infra.program.cluster import Objects


class ForeignObjectError(Exception):
    """An object of that name is there, and the stack did not make it. The message is `<Kind/name>: got X, want Y; do Z`."""


def owner() -> str:
    """The stack's name, as its objects bear it."""
    return f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"


def marks(target: ClusterSettings) -> Callable[[pulumi.ResourceTransformationArgs], None]:
    """A transformation that writes the stack's name on every object below a component, with the labels and annotations of the settings."""

    def mark(args: pulumi.ResourceTransformationArgs) -> None:
        template = getattr(args.props.get("spec"), "template", None)
        _add(getattr(template, "metadata", None), target.labels, target.annotations)
        _add(args.props.get("metadata"), target.labels, {**target.annotations, STACK_ANNOTATION: owner()})

    return mark


def _add(metadata: Any, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
    """What a component set itself stays. None of ours sets what is known only later."""
    if isinstance(metadata, k8s.meta.v1.ObjectMetaArgs):
        metadata.labels = {**labels, **cast("dict[str, str]", metadata.labels or {})} or None
        metadata.annotations = {**annotations, **cast("dict[str, str]", metadata.annotations or {})} or None


class Guard:
    """Refuses to create an object that is there. A program has one, for its cluster."""

    def __init__(self, target: ClusterSettings, objects: "Objects") -> None:
        self._taken = frozenset(target.take)
        self._objects = objects
        hook = pulumi.ResourceHook("nothing-of-others", self.look, pulumi.ResourceHookOptions(on_dry_run=True))
        self._hooks = pulumi.ResourceHookBinding(before_create=[hook])

    def over(self, args: pulumi.ResourceTransformationArgs) -> pulumi.ResourceTransformationResult | None:
        """Look up every object below a component before it is created: `ResourceOptions(transformations=[guard.over])`."""
        if not args.type_.startswith("kubernetes:"):
            return None
        options = pulumi.ResourceOptions.merge(args.opts, pulumi.ResourceOptions(hooks=self._hooks))
        return pulumi.ResourceTransformationResult(args.props, options)

    def look(self, created: pulumi.ResourceHookArgs) -> None:
        """Raise ForeignObjectError if the object is there."""
        wanted = created.new_inputs or {}
        name = f"{wanted['kind']}/{wanted['metadata']['name']}"
        found = None if name in self._taken else self._objects.find(wanted)
        if found is None:
            return
        whose = (found["metadata"].get("annotations") or {}).get(STACK_ANNOTATION)
        # In a preview an object that is going to be replaced is still there. The update, which has deleted it by then, looks again.
        if pulumi.runtime.is_dry_run() and (whose == owner() or (whose is None and _bears_our_label(found))):
            return
        raise ForeignObjectError(refusal(name, found, whose))


def _bears_our_label(found: Mapping[str, Any]) -> bool:
    """Older releases wrote no stack's name."""
    return (found["metadata"].get("labels") or {}).get("app.kubernetes.io/part-of") == PART_OF


def refusal(name: str, found: Mapping[str, Any], whose: str | None) -> str:
    """What to do about an object that is there, by who made it: a stack, this one by another state, or somebody else."""
    take = f"take it over with make up TAKE={name} (plain Pulumi: modelfleet:cluster.take)"
    if whose == owner():
        return (
            f"{name}: got one that stack {whose} made and the state at hand does not know, want that stack's own state; "
            f"use it from where it is, or, if it is lost or the object was kept by storage.retain, {take}"
        )
    makers = sorted({str(each.get("manager")) for each in found["metadata"].get("managedFields") or []})
    by = f"stack {whose}" if whose else " and ".join(makers) or "somebody else"
    other = "set modelfleet:cluster.namespace to another" if name.startswith("Namespace/") else "remove it"
    return f"{name}: got one that {by} made, want none; {other}, or {take}"
