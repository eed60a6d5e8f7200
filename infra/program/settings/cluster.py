"""The section `cluster`: which cluster, and which namespace of it."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from infra.program.settings.section import Annotations, DnsLabel, Labels, Section

ObjectName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z]*/[a-z0-9.-]+$")]
_OF_THE_SYSTEM = ("kube-", "openshift")
"""What the namespaces of Kubernetes and of OpenShift begin with."""


_FIRST_NAMESPACE = "modelfleet"
"""Where a cluster's first fleet usually is. What it has outside of the namespace bears plain names."""


class ClusterSettings(Section):
    context: str | None = None
    """Context of the kubeconfig to deploy to; never the current one by accident."""
    identity: str | None = None
    """UID of the cluster's kube-system namespace: another cluster under the same context name is refused."""
    namespace: DnsLabel = _FIRST_NAMESPACE
    """Where everything of the stack lives; the stack owns it."""
    prefix: str | None = Field(default=None, pattern=r"^([a-z0-9][a-z0-9-]{0,40}-)?$")
    """What the names of the stack's objects outside of its namespace begin with. By default nothing in the namespace `modelfleet`, and in
    another one its name; stacks that were made without it keep their names."""
    labels: Labels = Field(default={})
    """Labels of every object of the stack, its pods included, such as a cost centre. The stack's own labels are not for you to set."""
    annotations: Annotations = Field(default={})
    """Annotations of every object of the stack, its pods included."""
    user_ids: Literal["fixed", "assigned"] = "fixed"
    """`fixed`: every pod runs as the user of our images. `assigned`: pods name none, and the platform assigns one, as OpenShift does."""
    take: tuple[ObjectName, ...] = ()
    """Objects (`Kind/name`) that are there, that this stack did not make, and that it takes over, with all that they have."""
    render_to: str | None = None
    """Absolute directory: write YAML there and talk to no cluster."""

    def wide(self, name: str) -> str:
        """The name of an object that is not in the stack's namespace, or in another one."""
        return f"{self._default_prefix if self.prefix is None else self.prefix}{name}"

    @property
    def _default_prefix(self) -> str:
        return "" if self.namespace == _FIRST_NAMESPACE else f"{self.namespace}-"

    @field_validator("namespace")
    @classmethod
    def _is_not_the_systems(cls, value: str) -> str:
        if value == "default" or value.startswith(_OF_THE_SYSTEM):
            raise ValueError("want a namespace of the stack's own; name another")
        return value

    @field_validator("labels", "annotations")
    @classmethod
    def _are_not_the_stacks_own(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            if re.match(r"(app\.kubernetes\.io|modelfleet\.dev|pulumi\.com|pod-security\.kubernetes\.io)/", key):
                raise ValueError(f"want none with the prefix of {key}, which the stack sets by itself; choose another")
        return value

    @model_validator(mode="after")
    def _names_one_target(self) -> Self:
        if self.render_to is not None:
            if not self.render_to.startswith("/"):
                raise ValueError(f"renderTo: got {self.render_to!r}, want an absolute directory; write the full path")
            return self
        if not self.context:
            raise ValueError("context: got nothing, want a context of your kubeconfig; see kubectl config get-contexts")
        if not self.identity:
            raise ValueError(
                "identity: got nothing, want the UID of that cluster's kube-system namespace; "
                "take it from kubectl get namespace kube-system -o jsonpath={.metadata.uid}"
            )
        return self


def verifier_namespace(namespace: str) -> str:
    """Where the image verifier of a fleet in `namespace` runs."""
    return f"{namespace}-admission"
