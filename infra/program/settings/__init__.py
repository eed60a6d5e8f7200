"""The stack's configuration: one frozen section for each `modelfleet:` key, checked before any resource exists.

Each section has a module here. Defaults stand in the sections alone; `Pulumi.<stack>.yaml` holds what differs. `inputs` reads what Pulumi
hands over, `constraints` has the rules between sections, and `refusals` words what is refused. docs/configuration.md describes every key.
"""

from collections.abc import Collection, Mapping
from typing import Any, Self

from pydantic import ValidationError, model_validator

from infra.program.settings import constraints, model_servers, refusals
from infra.program.settings.section import SettingsError
from infra.program.settings.sections import Sections


class Settings(Sections):
    """All sections, and the rules that hold between them (infra/program/settings/constraints.py)."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = constraints.problems(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self


def parse(document: Mapping[str, Any], secret: Collection[str] = ()) -> Settings:
    """Settings from section name to value; what has the wrong form in one of the sections `secret` is not echoed.

    Raises SettingsError with every problem that was found.
    """
    current = model_servers.in_a_list(document)
    if model_servers.is_old(document) and model_servers.OLD in secret:
        secret = {*secret, model_servers.SECTION}
    try:
        return Settings.model_validate(current)
    except ValidationError as error:
        lines = refusals.lines(error, current, Settings, secret)
        said = map(model_servers.as_written, lines) if model_servers.is_old(document) else lines
        raise SettingsError("\n".join(said)) from None
