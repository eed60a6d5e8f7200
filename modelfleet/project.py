"""From the wheel: the directory of a user's stacks, laid out for Pulumi.

The wheel is no place for what is the user's, and Pulumi wants a project beside it. So a directory has the settings,
`Pulumi.<stack>.yaml`, which are the user's and never written again; `Pulumi.yaml`, which is ours and follows the wheel; and `.modelfleet/`,
two links to what the wheel has brought: its program and its Python. All but the last are the same on every machine, and can be committed.
"""

import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from modelfleet import TREE
from modelfleet.place import stacks
from modelfleet.report import UserError, say

LINKS = ".modelfleet"
PROGRAM, PYTHON = f"{LINKS}/program", f"{LINKS}/python"
_MARK = "# Written by modelfleet for its version. The settings are in Pulumi.<stack>.yaml.\n"


def lay_out(work: Path, wanted: Collection[str], words: Callable[[str], str]) -> None:
    """Give the directory what it lacks for these stacks, and say what is new. Nothing is written where there is no stack.

    Raises UserError for a project of somebody else.
    """
    project = work / "Pulumi.yaml"
    before = project.read_text() if project.exists() else ""
    if before and not before.startswith(_MARK):
        raise UserError(f"{project}: got a project that is not of this command, want a directory for its own; go to another one")
    for stack in [each for each in wanted if each in stacks(TREE) and not _settings(work, each).exists()]:
        _settings(work, stack).write_text(words((TREE / f"Pulumi.{stack}.yaml").read_text()))
        say(f"{_settings(work, stack)} is new: the settings of stack {stack}, which are yours from now on")
    if not stacks(work):
        return
    text = _MARK + _project_file()
    if text != before:
        project.write_text(text)
    (work / LINKS).mkdir(exist_ok=True)
    ignored = work / LINKS / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")
    _link(work / PROGRAM, TREE)
    _link(work / PYTHON, Path(sys.prefix))


def _settings(work: Path, stack: str) -> Path:
    return work / f"Pulumi.{stack}.yaml"


def _project_file() -> str:
    """That of the checkout, with the program and its Python behind the links."""
    text = (TREE / "Pulumi.yaml").read_text()
    python = "virtualenv: .venv\n"
    head, found, rest = text.partition(python)
    if not found:
        raise UserError(f"{TREE / 'Pulumi.yaml'}: got no line {python.strip()!r}, want it; build the wheel anew")
    return f"main: {PROGRAM}\n{head}virtualenv: {PYTHON}\n{rest}"


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
