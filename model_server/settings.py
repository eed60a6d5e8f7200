"""Settings from the environment."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "MODEL_SERVER_"


class SettingsError(Exception):
    """Every wrong variable, one a line: `<variable>: got X, want Y; do Z`."""


class Settings(BaseModel):
    """One field for each variable, which is `MODEL_SERVER_` and the field's name in capitals."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, protected_namespaces=())

    host: str = "0.0.0.0"
    port: int = Field(default=8080, ge=0, le=65535)
    models_dir: Path = Path("/models")
    """A model store as Ollama lays it out; read only."""
    model: str = Field(pattern=r"^[^\s:]+:[^\s:]+$")
    """`[host/][namespace/]model:tag` in the store."""
    model_id: str = ""
    """The id that requests name; `model` when empty."""
    context_length: int = Field(default=4096, ge=512)
    """Tokens of one request, prompt and answer together."""
    parallel: int = Field(default=2, ge=1, le=64)
    """Requests that are generated at once."""
    max_queue: int = Field(default=16, ge=0)
    """Requests that may wait; more are refused with 503."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of the engine; 0 means one a core."""
    engine_silence_s: float = Field(default=300, gt=0)
    """An engine that answers no question for so long hangs, and the process ends. While it reads one piece of a prompt, 2048 tokens, it
    answers none: minutes for a large model on a slow CPU."""
    cache_url: str = Field(default="", pattern=r"^(rediss?://.*)?$")
    """Where exact answers are kept; empty means nowhere."""
    cache_password_file: Path | None = None
    drain_s: float = Field(default=120, ge=0)
    drain_delay_s: float = Field(default=2, ge=0)

    @property
    def served_id(self) -> str:
        return self.model_id or self.model

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises SettingsError."""
        values = {name[len(PREFIX) :].lower(): value for name, value in environ.items() if name.startswith(PREFIX)}
        # Kubernetes adds MODEL_SERVER_SERVICE_HOST and the like for a Service of this name.
        values = {name: value for name, value in values.items() if not name.startswith(("service_", "port_"))}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError("\n".join(_line(each, values) for each in error.errors(include_url=False))) from None


def _line(error: Mapping[str, object], values: Mapping[str, str]) -> str:
    loc = error["loc"]
    assert isinstance(loc, tuple)  # noqa: S101 (pydantic's own contract)
    name = f"{PREFIX}{str(loc[0]).upper()}"
    if error["type"] == "missing":
        return f"{name}: got nothing, want a value; set the variable"
    if error["type"] == "extra_forbidden":
        known = ", ".join(PREFIX + field.upper() for field in Settings.model_fields)
        return f"{name}: got an unknown variable, want one of {known}; correct or remove it"
    return f"{name}: got {values.get(str(loc[0]), '')!r}, want {str(error['msg']).removeprefix('Input should be ')}; correct the variable"
