"""The section `cluster`: which cluster, and which namespace of it."""

from typing import Self

from pydantic import model_validator

from infra.program.settings.section import DnsLabel, Section


class ClusterSettings(Section):
    context: str | None = None
    """Context of the kubeconfig to deploy to; never the current one by accident."""
    identity: str | None = None
    """UID of the cluster's kube-system namespace: another cluster under the same context name is refused."""
    namespace: DnsLabel = "modelfleet"
    """Where everything of the stack lives; the stack owns it."""
    render_to: str | None = None
    """Absolute directory: write YAML there and talk to no cluster."""

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
