"""What the stack exports, as one versioned object that other programs read."""

from pydantic import BaseModel, ConfigDict

VERSION = 1
"""Raised when a field is removed or changes its meaning; a new field does not raise it."""


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
    models: dict[str, int]
    """Model id to the context length that was asked for, in tokens."""
    images: dict[str, str]
