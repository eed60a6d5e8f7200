"""`make clean-cache`: say what the cache holds, and free it. Only what this project makes goes, and nothing that is in use."""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from devcluster.cache import IN_USE, alone, cache_root, say, users

OURS = {
    r"tools": "built tools",
    r"images": "layers of images",
    r"models": "the default model",
    r"debian": "unpacked Debian packages",
    r"pulumi": "Pulumi's plugins",
    r"try": "what make try installed",
    r"fresh-roots": "empty Debian systems of the proofs",
    r"go-[0-9a-f]{12}": "Go",
    r"go-(modules|build|path|tmp|config)": "what an unfinished build keeps",
    r"\.(go-[0-9a-f]{12}\.partial|go\.lock)": "",
}
"""Pattern of a name in the cache, and what it is; without a text, too small to be told."""


class CleanError(Exception):
    """The cache cannot be emptied; the message says what to do."""


def _known(path: Path) -> str | None:
    """What it is; None for what is not ours, and for a link, whose target may be anything."""
    found = next((text for pattern, text in OURS.items() if re.fullmatch(pattern, path.name)), None)
    return None if path.is_symlink() else found


def size_bytes(path: Path) -> int:
    """Disk that is freed with it; a file with several names is counted once."""
    seen: dict[tuple[int, int], int] = {}
    for each in [path, *path.rglob("*")]:
        stat = each.lstat()
        seen[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(seen.values())


def clean(*, yes: bool) -> int:
    """Bytes that were freed. Raises CleanError while the cache is in use, or without an answer that says yes."""
    root = cache_root()
    children = sorted(root.iterdir()) if root.is_dir() else []
    ours = [path for path in children if _known(path) is not None]
    for path in children:
        if path not in ours and path.name != IN_USE:
            say(f"clean-cache: leaves {path}: not made here")
    told = {path: size_bytes(path) for path in ours if _known(path)}
    if not told:
        say(f"clean-cache: nothing to free in {root}")
        return 0
    for path, size in told.items():
        say(f"{size / 1e6:10.0f} MB  {path}  ({_known(path)})")
    whole = sum(told.values())
    with alone() as free:
        _refuse_use(free=free)
        if not yes and not _agreed(f"free {whole / 1e6:.0f} MB? [y/N] "):
            raise CleanError("clean-cache: got no yes, want one; nothing was removed")
        # Asked again: the answer may have taken its time.
        _refuse_use(free=free)
        for path in ours:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        # The mark of use last: who comes meanwhile waits for it.
        (root / IN_USE).unlink()
    say(f"clean-cache: freed {whole / 1e6:.0f} MB")
    return whole


def _refuse_use(*, free: bool) -> None:
    using = users()
    if using or not free:
        who = ", ".join(using[:3]) + (f" and {len(using) - 3} more" if len(using) > 3 else "")
        raise CleanError(f"{cache_root()}: got {who or 'another process'} using it, want nobody; run make down, or wait for its end")


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CleanError("clean-cache: got no terminal to ask on, want an answer; run make clean-cache YES=1")
    return input(question).strip().lower() in ("y", "yes")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m devcluster.clean", description=__doc__)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)
    try:
        clean(yes=options.yes)
    except CleanError as error:
        say(f"error: {error}")
        return 1
    except OSError as error:
        say(f"error: {cache_root()}: got {error}, want to remove it; mend its rights and run make clean-cache again")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
