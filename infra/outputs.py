"""What the stack exports, as one versioned object that other programs read."""

from pydantic import BaseModel, ConfigDict

VERSION = 1
"""Raised when a field is removed or changes its meaning; a new field does not raise it."""


class ModelOutput(BaseModel):
    """A model that the fleet answers for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    context_length: int
    """Tokens that its server was asked to hold."""


class FleetOutputs(BaseModel):
    """The stack output `fleet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    namespace: str
    service: str
    """Name of the API server's Service."""
    port: int
    node_port: int | None
    base_path: str
    """Where the OpenAI API starts, below the Service's address."""
    models: list[ModelOutput]
    """The fleet's models first, in the order of the configuration."""
    images: dict[str, str]
