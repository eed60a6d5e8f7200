"""The commands about a stack, `infra.lifecycle`, from the wheel: in the user's directory, and in the words of this command line."""

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata

from infra.lifecycle import arguments as known
from modelfleet import FROM_WHEEL, TREE, project
from modelfleet.place import WORK, stacks
from modelfleet.report import UserError
from modelfleet.words import Spoken, Words

EXTRA = "up"
_BEGIN = ("up", "preview", "check")
"""Commands that a user begins with: an empty directory gets what they need. Others would find nothing there."""

_OF_NO_STACK = ("clean-cache",)


def run(arguments: Sequence[str]) -> int:
    """The exit status of a command. Raises UserError."""
    if not FROM_WHEEL:
        raise UserError(f"{arguments[0]}: got a checkout, want the wheel; run make {arguments[0]}")
    parser = known.parser("modelfleet")
    options = parser.parse_args(arguments)
    require_packages(options.command)
    words = Words(parser, known.COMMANDS, project.PROGRAM)
    with redirect_stdout(Spoken(sys.stdout, words)), redirect_stderr(Spoken(sys.stderr, words)):  # pyright: ignore[reportArgumentType]
        if options.command not in _OF_NO_STACK:
            _lay_out(begun(options), words)
        # Half a second to import, and not there without the extra.
        from infra.lifecycle import __main__ as lifecycle  # noqa: PLC0415

        return lifecycle.run(options)


def _lay_out(wanted: Collection[str], words: Words) -> None:
    try:
        project.lay_out(WORK, wanted, words.of)
    except OSError as error:
        got = f"got {error.strerror or error}, want to keep the stack's files there"
        raise UserError(f"{error.filename}: {got}; go to a directory of yours") from None


def begun(options: argparse.Namespace) -> list[str]:
    """Stacks that get the settings which come with the wheel, where they have none."""
    if options.command not in _BEGIN:
        return []
    if options.command == "preview" and not options.context:
        return [] if stacks(WORK) else stacks(TREE)
    return [] if _is_elsewhere(options) else [options.stack]


def _is_elsewhere(options: argparse.Namespace) -> bool:
    """Whether the stack has been deployed already: its settings are in another directory, and these here would undo them."""
    from infra.engine.shared import backend  # noqa: PLC0415
    from infra.lifecycle.own_cluster import state_directory  # noqa: PLC0415

    return bool(options.context) and (bool(backend()) or state_directory(options.context, options.stack).exists())


def require_packages(command: str) -> None:
    """Raises UserError where the extra of the wheel is not installed."""
    absent = [name for name in _wanted() if not _has(name)]
    if absent:
        got = f"got no {', '.join(absent[:3])}{f' and {len(absent) - 3} more' if len(absent) > 3 else ''}"
        raise UserError(f"packages: {got}, want those of the extra {EXTRA}; run uvx --from 'FILE.whl[{EXTRA}]' modelfleet {command}")


def _wanted() -> list[str]:
    """The packages of the extra, as the wheel names them."""
    named = [re.match(rf"([\w.-]+)==.*extra == ['\"]{EXTRA}['\"]", line) for line in metadata.requires("modelfleet") or ()]
    return [found[1] for found in named if found]


def _has(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
