"""Settings from the environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError


class SettingsError(Exception):
    """Every wrong variable, one a line: `<variable>: got X, want Y; do Z`."""


class _Environment(BaseModel):
    """One field for each variable, which is PREFIX and the field's name in capitals."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def read(cls, prefix: str, environ: Mapping[str, str]) -> Self:
        """Raises SettingsError."""
        values = {name[len(prefix) :].lower(): value for name, value in environ.items() if name.startswith(prefix)}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError("\n".join(cls._line(prefix, each, values) for each in error.errors(include_url=False))) from None

    @classmethod
    def _line(cls, prefix: str, error: "Mapping[str, object]", values: Mapping[str, str]) -> str:
        loc = error["loc"]
        assert isinstance(loc, tuple)  # noqa: S101 (pydantic's own contract)
        name = f"{prefix}{str(loc[0]).upper()}" + "".join(f".{part}" for part in loc[1:])
        if error["type"] == "missing":
            return f"{name}: got nothing, want a value; set the variable"
        if error["type"] == "extra_forbidden":
            known = ", ".join(prefix + field.upper() for field in cls.model_fields)
            return f"{name}: got an unknown variable, want one of {known}; correct or remove it"
        got = repr(values.get(str(loc[0]), "")) if len(loc) == 1 else "a wrong value"
        return f"{name}: got {got}, want {str(error['msg']).removeprefix('Input should be ')}; correct the variable"


class AgentSettings(_Environment):
    """Variables `OLLAMA_AGENT_…` of the agent."""

    host: str = "0.0.0.0"
    port: int = Field(default=9465, ge=0, le=65535)
    """Of what other pods may read: /metrics and /context."""
    control_port: int = Field(default=9466, ge=0, le=65535)
    """Of what the kubelet asks: /ready and /drain. No network policy opens it, and the kubelet needs none."""
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

    @property
    def ollama_port(self) -> int:
        return int(self.ollama_url.rpartition(":")[2])

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Raises SettingsError."""
        return cls.read("OLLAMA_AGENT_", environ)


class ProbeSettings(_Environment):
    """Variables `OLLAMA_PROBE_…` of the context probe."""

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
    """Tokens that every model must have."""
    timeout_s: float = Field(default=3600, gt=0)
    poll_s: float = Field(default=2, gt=0)
    result: Path = Path("/dev/termination-log")
    """Where the result goes: Kubernetes makes it the container's termination message."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Raises SettingsError."""
        return cls.read("OLLAMA_PROBE_", environ)
