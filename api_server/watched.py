"""A mounted file whose content changes while the process runs."""

import time
from pathlib import Path

RECHECK_S = 1.0
_NO_FILE = (0, 0)


class Watched:
    """Says when to read a file again. Kubernetes replaces the files of a volume by others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._current()
        self._looked = time.monotonic()

    def has_changed(self) -> bool:
        """Whether it is another file than at the last look. Looks once a second at most."""
        now = time.monotonic()
        if now - self._looked < RECHECK_S:
            return False
        self._looked = now
        before, self._stamp = self._stamp, self._current()
        return self._stamp != before

    def forget(self) -> None:
        """The next look finds a change."""
        self._stamp = _NO_FILE

    def _current(self) -> tuple[int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino
