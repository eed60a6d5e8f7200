"""What is committed of a stack: its `Pulumi.<stack>.yaml`."""

from typing import Any

import yaml

from infra import ROOT


def stack_config(stack: str) -> dict[str, Any]:
    """The committed configuration of a stack, section by section."""
    document = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())
    return dict(document["config"])
