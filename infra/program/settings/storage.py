"""The section `storage`: the two tiers that models are kept in."""

from typing import Literal, Self

from pydantic import Field, model_validator

from infra.program.settings.section import Bytes, Section


class Tier(Section):
    provisioner: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9./-]{0,198}[a-z0-9])?$")
    """The CSI driver of a StorageClass that the stack makes. Without it, `className` is one that is there."""
    class_name: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")
    """Name of the StorageClass."""
    size: Bytes
    """Size of one claim."""
    parameters: dict[str, str] = Field(default={})
    """Parameters of the StorageClass, as the driver documents them."""
    mount_options: list[str] = Field(default=[])
    """For example nfsvers=4.1."""

    def _require_class(self) -> None:
        if self.provisioner is None and self.class_name is None:
            raise ValueError("provisioner: got nothing, want a CSI driver; set it, or set className to a class that is there")
        if self.provisioner is None and (self.parameters or self.mount_options):
            raise ValueError("parameters: got some for a class that is there, want none; they are that class's own, so remove them")


class HotTier(Tier):
    @model_validator(mode="after")
    def _has_a_class(self) -> Self:
        self._require_class()
        return self


class SharedTier(Tier):
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """ReadWriteOnce where one node has every pod of the fleet, and no driver shares a volume: kind, for example."""
    claim: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")
    """A ReadWriteMany claim that is there, in a namespace that the stack takes over (`cluster.take`); it is neither made nor deleted."""

    @model_validator(mode="after")
    def _has_a_class(self) -> Self:
        if self.claim is None:
            self._require_class()
        elif self.provisioner is not None or self.class_name is not None or self.parameters or self.mount_options:
            raise ValueError(f"claim: got {self.claim} with a class, want one of them; a claim has its own, so remove the class")
        return self


class StorageSettings(Section):
    hot: HotTier
    """Node-local, one claim a replica of the fleet and of model servers: StorageClass local-nvme, if it is not named otherwise."""
    shared: SharedTier
    """ReadWriteMany, one claim for the fleet: StorageClass shared-models, if it is not named otherwise."""
    retain: bool = True
    """Keep models (claims, volumes, namespace) when the stack is destroyed."""
