"""The contract through a Pulumi StackReference."""

from typing import Any

import pulumi

from modelfleet_outputs.contract import FleetOutputs, OutputsError, parse


class Fleet:
    """A deployed fleet, as another stack sees it. A wrong version fails the update with a message that says so."""

    outputs: pulumi.Output[FleetOutputs]
    """Everything that is no secret."""
    api_keys: pulumi.Output[list[str]]
    """Keys for the API server, one or more; a Pulumi secret, and so is everything made of it."""
    keys_by_name: pulumi.Output[dict[str, str]]
    """The same by their names, a secret too; empty where the fleet is older than names."""

    def __init__(self, reference: pulumi.StackReference) -> None:
        self.outputs = reference.require_output("fleet").apply(_plain)
        self.api_keys = pulumi.Output.secret(reference.require_output("apiKeys"))
        self.keys_by_name = pulumi.Output.secret(reference.get_output("keysByName").apply(lambda keys: dict(keys or {})))


def _plain(document: Any) -> FleetOutputs:
    try:
        return parse(document)
    except OutputsError as error:
        # The one exception that Pulumi shows without a traceback.
        raise pulumi.RunError(str(error)) from None
