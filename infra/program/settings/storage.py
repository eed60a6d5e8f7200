"""The section `storage`: the two tiers that models are kept in."""

from pydantic import Field

from infra.program.settings.section import Bytes, Section


class Tier(Section):
    provisioner: str = Field(pattern=r"^[a-z0-9]([a-z0-9./-]{0,198}[a-z0-9])?$")
    """The CSI driver."""
    size: Bytes
    """Size of one claim."""
    parameters: dict[str, str] = Field(default={})
    """Parameters of the StorageClass, as the driver documents them."""
    mount_options: list[str] = Field(default=[])
    """For example nfsvers=4.1."""


class StorageSettings(Section):
    hot: Tier
    """Node-local, one claim a replica: StorageClass local-nvme."""
    shared: Tier
    """ReadWriteMany, one claim for the fleet: StorageClass shared-models."""
    retain: bool = True
    """Keep models (claims, volumes, namespace) when the stack is destroyed."""
