"""What is committed of a stack: its `Pulumi.<stack>.yaml`."""

from typing import Any

import yaml

from infra import WORK
from infra.program.settings.refusals import shown
from infra.program.settings.section import SettingsError
from modelfleet.place import stacks


def stack_config(stack: str) -> dict[str, Any]:
    """The committed configuration of a stack, section by section. Raises SettingsError for a stack without a file."""
    try:
        document = yaml.safe_load((WORK / f"Pulumi.{stack}.yaml").read_text())
    except FileNotFoundError:
        want = f"want one with a file Pulumi.<stack>.yaml in {WORK} ({', '.join(stacks(WORK)) or 'none'} there)"
        raise SettingsError(f"STACK: got {shown(stack)}, {want}; correct the name, or go to the directory of its file") from None
    return dict(document["config"])
