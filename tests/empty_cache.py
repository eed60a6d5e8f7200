"""A cache of its own for a test: empty, but for the Go that the machine's own cache has unpacked already."""

from pathlib import Path

import pytest

from devcluster import go
from devcluster.cache import cache_root


def empty_cache(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `directory` the cache's parent; the cache below it."""
    go.command()
    unpacked = go.home()
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    cache_root().mkdir(parents=True)
    go.home().symlink_to(unpacked)
    return cache_root()
