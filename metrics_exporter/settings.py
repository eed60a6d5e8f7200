"""Settings from the environment."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "EXPORTER_"


class SettingsError(Exception):
    """Every wrong variable, one a line: `<variable>: got X, want Y; do Z`."""


class Settings(BaseModel):
    """One field for each variable, which is `EXPORTER_` and the field's name in capitals; `node` comes from NODE_NAME."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = "0.0.0.0"
    port: int = Field(default=9400, ge=0, le=65535)
    nvml: bool = True
    """Whether to read GPUs; false on pods that have none by design."""
    cache_url: str = Field(default="", pattern=r"^(rediss?://.*)?$")
    cache_password_file: Path | None = None
    timeout_s: float = Field(default=2.0, gt=0, le=10)
    """What one target may take of a scrape; Prometheus itself waits 10 s by default."""
    node: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises SettingsError."""
        values = {name[len(PREFIX) :].lower(): value for name, value in environ.items() if name.startswith(PREFIX)}
        values["node"] = environ.get("NODE_NAME", "")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError("\n".join(_line(each, values) for each in error.errors(include_url=False))) from None


def _line(error: Mapping[str, object], values: Mapping[str, str]) -> str:
    loc = error["loc"]
    assert isinstance(loc, tuple)  # noqa: S101 (pydantic's own contract)
    name = f"{PREFIX}{str(loc[0]).upper()}"
    if error["type"] == "extra_forbidden":
        known = ", ".join(PREFIX + field.upper() for field in Settings.model_fields if field != "node")
        return f"{name}: got an unknown variable, want one of {known}; correct or remove it"
    return f"{name}: got {values.get(str(loc[0]), '')!r}, want {str(error['msg']).removeprefix('Input should be ')}; correct the variable"
