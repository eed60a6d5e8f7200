"""Settings from the environment."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Json, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """Every wrong variable, one a line: `<variable>: got X, want Y; do Z`."""


class Environment(BaseSettings):
    """One field for each variable, which is the prefix and the field's name in capitals."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least of what it says of itself."""

    @classmethod
    def read(cls) -> Self:
        """Raises SettingsError."""
        prefix = cls.model_config.get("env_prefix", "")
        names = [f"{prefix}{name}".upper() for name in cls.model_fields]
        # The library takes what it knows, and a misspelt variable for somebody else's.
        unknown = sorted(name for name in os.environ if name.startswith(prefix) and name not in names)
        lines = [f"{name}: got an unknown variable, want one of {', '.join(names)}; correct or remove it" for name in unknown]
        try:
            found = cls()
        except ValidationError as error:
            raise SettingsError("\n".join([*lines, *(_line(prefix, each) for each in error.errors(include_url=False))])) from None
        if lines:
            raise SettingsError("\n".join(lines))
        return found


def _line(prefix: str, error: Any) -> str:
    name = f"{prefix}{error['loc'][0]}".upper()
    if error["type"] == "missing":
        return f"{name}: got nothing, want a value; set the variable"
    # What stands before an @ may be a password.
    got = repr(re.sub(r".*@", "…@", os.environ.get(name, ""))) if len(error["loc"]) == 1 else f"a wrong {error['loc'][-1]}"
    return f"{name}: got {got}, want {error['msg'].removeprefix('Input should be ')}; correct the variable"


class AgentSettings(Environment):
    """Variables `OLLAMA_AGENT_…` of the agent."""

    model_config = SettingsConfigDict(env_prefix="OLLAMA_AGENT_")

    host: str = ""
    """Where it listens; empty is every address, of each family that the kernel has."""
    port: int = Field(default=9465, ge=0, le=65535)
    """Of what other pods may read: /metrics and /context."""
    control_port: int = Field(default=9466, ge=0, le=65535)
    """Of what the kubelet asks: /ready and /drain. No network policy opens it, and the kubelet needs none."""
    head_s: float = Field(default=75, gt=0)
    """For the whole head of a connection's next request; who asks each minute keeps one connection."""
    ollama_url: str = Field(default="http://127.0.0.1:11434", pattern=r"^http://[^/:\s]+:\d+$")
    catalog: Path = Path("/models/catalog.json")
    """Which models this replica holds; read again when it changes."""
    store: Path = Path("/models")
    replica: str = ""
    """The pod's name."""
    revision: str = ""
    """What the pod was made from; the probe waits for the replicas of its own revision."""
    drain_s: float = Field(default=600, ge=0)
    """Longest wait for requests in flight."""
    notice_s: float = Field(default=10, ge=0)
    """Shortest drain: what a gateway needs to see that the replica left (endpoints 1 s, DNS 5 s, its own look-ups 2 s)."""
    load_timeout_s: float = Field(default=1800, gt=0)
    """Longest load of one model."""
    poll_s: float = Field(default=2, gt=0)
    """Between two looks at the server."""
    engine_silence_s: float = Field(default=45, ge=6)
    """An engine of Ollama's that answered once, and then does not for so long, hangs; each is asked every 5 s."""
    gpu: bool = False
    """Whether the replica has GPUs: then a model that is not all on them makes it unready."""

    @property
    def ollama_port(self) -> int:
        return int(self.ollama_url.rpartition(":")[2])


class ProbeSettings(Environment):
    """Variables `OLLAMA_PROBE_…` of the context probe."""

    model_config = SettingsConfigDict(env_prefix="OLLAMA_PROBE_")

    host: str
    """A name with the addresses of all replicas, ready or not."""
    port: int = Field(default=9465, ge=1, le=65535)
    replicas: int = Field(ge=1)
    """How many replicas there must be."""
    revision: str = ""
    """Only replicas of this revision count."""
    models: Json[Annotated[dict[str, int], Field(min_length=1)]]
    """Model to how many replicas must hold it."""
    min_context: int = Field(ge=1)
    """Tokens that every model must have, but for those of `embedding`."""
    embedding: Json[tuple[str, ...]] = Field(default=(), validate_default=False)
    """Models that do not chat: no agent needs a long context of them."""
    timeout_s: float = Field(default=3600, gt=0)
    poll_s: float = Field(default=2, gt=0)
    patience_s: float = Field(default=45, ge=0)
    """How long a replica may have a problem with a model, while it tries again, before the probe gives up."""
    result: Path = Path("/dev/termination-log")
    """Where the result goes: Kubernetes makes it the container's termination message."""
