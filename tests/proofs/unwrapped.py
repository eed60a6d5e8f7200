"""Values of Pulumi without the wrapping of its secrets."""

import json
from typing import Any

_SECRET = "4dabf18193072939515e22adb298388d"
"""Marks a secret value, in a state and in what mocks are given: `sig` of Pulumi's resource.Secret."""


def plain(value: Any) -> Any:
    """The value, with each secret in it as its own value. A state has it as JSON in `plaintext`, mocks have it as it is in `value`."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    if _SECRET not in value:
        return {name: plain(each) for name, each in value.items()}
    return json.loads(value["plaintext"]) if "plaintext" in value else plain(value["value"])
