"""What the fleet exports, with the key of one team alone: the stack which that team's programs refer to.

Configuration (`pulumi config set modelfleet-team:<key>`):
  fleet  the fleet's stack, for example organization/modelfleet/prod
  key    name of the team's key (docs/keys.md)
"""

import pulumi

from modelfleet_outputs.stack import Fleet


class UnknownKeyError(pulumi.RunError):
    """The fleet has no key of that name; the message says what to do."""


def of_team(keys: dict[str, str], name: str) -> str:
    """The team's key. Raises UnknownKeyError."""
    if name not in keys:
        raise UnknownKeyError(
            f"modelfleet-team:key: got {name}, want one of {', '.join(sorted(keys))}; correct it, or run make key NAME={name} and pulumi up"
        )
    return keys[name]


def main() -> None:
    config = pulumi.Config("modelfleet-team")
    name = config.require("key")
    reference = pulumi.StackReference(config.require("fleet"))
    key = pulumi.Output.secret(Fleet(reference).keys_by_name.apply(lambda keys: of_team(keys, name)))
    # The same names as the fleet's own outputs, so programs read either.
    pulumi.export("fleet", reference.require_output("fleet"))
    pulumi.export("apiKeys", key.apply(lambda text: [text]))
    pulumi.export("keysByName", key.apply(lambda text: {name: text}))


if __name__ == "__main__":
    main()
