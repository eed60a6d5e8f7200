"""The directory of whoever runs a command that is about a stack. Not for `try`, which has none."""

from pathlib import Path

from modelfleet import FROM_WHEEL, TREE

WORK = Path.cwd() if FROM_WHEEL else TREE
"""Where the stacks' files are: the checkout. From the wheel, which is no place for anything of the user's, the current directory."""


def stacks(directory: Path) -> list[str]:
    """Those that have a file with settings there, sorted."""
    return sorted(path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in directory.glob("Pulumi.?*.yaml"))
