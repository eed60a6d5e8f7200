"""One pass over the tier's directory: what is there, what goes, and what writers may add. Pure but for the files themselves."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from model_server.tier.agreement import BLOCKS, PAGE, WRITERS, Known, taken, writers

Reason = Literal["orphan", "limit", "disk", "left"]
"""Why a file went: no living writer uses its model; for the limit; because the disk filled up; a dead writer left it half written."""
AHEAD, LOW = 0.1, 0.8
"""Parts of the limit: what all writers together may add until the next pass; and what is left when that has no room and files go."""
YOUNG_S = 60.0
"""No file goes that is younger: its writer, or who reads it just after, is at work with it."""
_UNFINISHED, _CONFIGURATION = ".tmp", "/config.json"
"""How names of vLLM's files end (vllm/v1/kv_offload/tiering/fs/io.py and file_mapper.py of model_server.vllm.VERSION)."""


@dataclass(frozen=True)
class Bounds:
    """What the directory may take."""

    limit: int
    """Bytes, with its directories."""
    free: float = 0.0
    """Part of its file system that stays free."""
    young_s: float = YOUNG_S


@dataclass(slots=True)
class File:
    path: str
    size: int
    used_ns: int
    """When it was read or written last."""
    written_ns: int

    @property
    def base(self) -> str:
        """Which engine and model it is of: vLLM's directory of it, without the rank."""
        first = self.path.split("/", 1)[0]
        stem, mark, rank = first.rpartition("_r")
        return stem if mark and rank.isdigit() else first


@dataclass
class Found:
    """What a pass found and did."""

    bytes: int = 0
    """What is there after it, with what living writers may add."""
    files: int = 0
    oldest_ns: int = 0
    """When the file that was used longest ago was used; 0 without a file."""
    limit: int = 0
    """What the directory may take now: the limit, or less on a disk that others fill."""
    writers: int = 0
    removed: Counter[Reason] = field(default_factory=Counter)
    removed_bytes: int = 0


def keep(directory: Path, bounds: Bounds, now_ns: int) -> Found:
    """`now_ns`: the clock of the file system. Raises OSError when the directory cannot be read or written."""
    alive = list(writers(directory))
    files, folders = look(directory)
    size = sum(file.size for file in files) + folders * PAGE
    disk = os.statvfs(directory)
    found = Found(
        writers=len(alive), limit=max(0, min(bounds.limit, size + int((disk.f_bavail - bounds.free * disk.f_blocks) * disk.f_frsize)))
    )
    kept: list[File] = []
    ahead = int(found.limit * AHEAD) // max(1, len(alive))
    full = size + sum(max(known.open, ahead) for known in alive) > found.limit
    target = int(found.limit * LOW) if full or size > found.limit else size
    why: Reason = "limit" if found.limit == bounds.limit else "disk"
    bases = {known.base for known in alive}
    old = now_ns - int(bounds.young_s * 1e9)
    for file in sorted(files, key=lambda file: (file.base in bases, file.used_ns)):
        reason = _left(file, alive) or (_room(file, bases, why) if size > target and file.written_ns < old else None)
        if reason is None or not _remove(directory / BLOCKS / file.path):
            kept.append(file)
            continue
        size -= file.size
        found.removed[reason] += 1
        found.removed_bytes += file.size
    size -= _prune(directory / BLOCKS, old) * PAGE
    _allow(alive, ahead, found.limit - size)
    alive = list(writers(directory))
    found.bytes, found.files = size + sum(known.open for known in alive), len(kept)
    found.oldest_ns = min((file.used_ns for file in kept), default=0)
    return found


def _room(file: File, bases: set[str], why: Reason) -> Reason | None:
    """What is being written never goes for room. Without a writer nobody knows whose files are wanted."""
    if file.path.endswith(_UNFINISHED) or (file.base in bases and file.path.endswith(_CONFIGURATION)):
        return None
    return "orphan" if bases and file.base not in bases else why


def _left(file: File, alive: list[Known]) -> Reason | None:
    """A file that is half written, and was so before every living writer began."""
    return "left" if file.path.endswith(_UNFINISHED) and all(file.written_ns < known.born_ns for known in alive) else None


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _allow(alive: list[Known], ahead: int, room: int) -> None:
    """Let each writer add `ahead` bytes, with what it may add already, as far as there is room for it."""
    room -= sum(known.open for known in alive)
    for known in alive:
        more = min(room, ahead - known.open)
        if more > 0:
            known.allow(more)
            room -= more


def look(directory: Path) -> tuple[list[File], int]:
    """Files, and the number of directories. No link is followed; nothing of a file is read."""
    files: list[File] = []
    folders = 0
    root = directory / BLOCKS
    for entry in _walk(root):
        if entry.is_dir(follow_symlinks=False):
            folders += 1
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        used = max(status.st_atime_ns, status.st_mtime_ns)
        files.append(File(os.path.relpath(entry.path, root), taken(status.st_size), used, status.st_mtime_ns))
    return files, folders


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)


def _prune(root: Path, old_ns: int) -> int:
    """Remove directories that are empty, and were for a while; how many. A writer that finds one gone writes that block another time."""
    gone = 0
    # What lies in a directory goes before it.
    for path in sorted((Path(entry.path) for entry in _walk(root) if entry.is_dir(follow_symlinks=False)), reverse=True):
        try:
            if path.stat().st_mtime_ns < old_ns:
                path.rmdir()
                gone += 1
        except OSError:
            continue
    return gone


def clock(directory: Path) -> int:
    """Now, in nanoseconds, as the file system has it: a shared one has the clock of its server. Raises OSError."""
    path = directory / WRITERS / "now"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path.stat().st_mtime_ns
