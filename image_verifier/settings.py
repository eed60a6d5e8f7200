"""Settings from the environment."""

import os
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError
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


class Settings(Environment):
    """Variables `VERIFIER_…`."""

    model_config = SettingsConfigDict(env_prefix="VERIFIER_")

    host: str = ""
    """Where it listens; empty is every address, of each family that the kernel has."""
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
    registries: str = Field(default="", pattern=r"^([a-z0-9.-]+(:[0-9]{1,5})?(,[a-z0-9.-]+(:[0-9]{1,5})?)*)?$")
    """Hosts, with a port where it is not 443 and commas between them, that images may come from, and that are asked; empty is any."""
    head_s: float = Field(default=120, gt=0)
    """For the whole head of a connection's next request; longer than the 90 s for which the API server keeps a connection that idles."""
    debug_containers: bool = True
    """Whether pods may get ephemeral containers."""
    trust_s: float = Field(default=3600, gt=0)
    """How long a signature that was found counts without being looked for again."""

    @property
    def allowed(self) -> list[str]:
        return self.registries.split(",") if self.registries else []
