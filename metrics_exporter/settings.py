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
    """Variables `EXPORTER_…`; `node` comes from NODE_NAME."""

    model_config = SettingsConfigDict(env_prefix="EXPORTER_")

    host: str = ""
    """Where it listens; empty is every address, of each family that the kernel has."""
    port: int = Field(default=9400, ge=0, le=65535)
    nvml: bool = True
    """Whether to read GPUs; false on pods that have none by design."""
    cache_url: str = Field(default="", pattern=r"^(rediss?://.*)?$")
    cache_password_file: Path | None = None
    scan_file: Path | None = None
    """Where the result of the last scan of images is, once there was one."""
    timeout_s: float = Field(default=2.0, gt=0, le=10)
    """What one target may take of a scrape; Prometheus itself waits 10 s by default."""
    head_s: float = Field(default=75, gt=0)
    """For the whole head of a connection's next request; who asks each minute keeps one connection."""
    node: str = Field(default="", validation_alias="NODE_NAME")
