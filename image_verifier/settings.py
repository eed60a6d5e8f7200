"""Settings from the environment."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "VERIFIER_"


class SettingsError(Exception):
    """Every wrong variable, one a line: `<variable>: got X, want Y; do Z`."""


class Settings(BaseModel):
    """One field for each variable, which is `VERIFIER_` and the field's name in capitals."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = "0.0.0.0"
    port: int = Field(default=8443, ge=0, le=65535)
    certificate_file: Path
    """Serving certificate, PEM; the API server must trust it."""
    key_file: Path
    """Its private key, PEM."""
    public_keys_file: Path
    """One or more public keys, PEM; a signature by any of them counts."""
    mirror: str = Field(default="", pattern=r"^(https?://[^/\s]+)?$")
    """Registry that is asked for every image, whatever host its name has: the embedded cluster's, or a pull-through cache."""
    registry_auth_file: Path | None = None
    """dockerconfigjson with logins for reading; without it only what registries show to everyone is read."""
    ca_file: Path | None = None
    """Authorities of registries beside the public ones, PEM."""
    timeout_s: float = Field(default=5.0, gt=0, le=30)
    """For all look-ups of one pod; the API server's own patience must be longer."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises SettingsError."""
        values = {name[len(PREFIX) :].lower(): value for name, value in environ.items() if name.startswith(PREFIX)}
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
