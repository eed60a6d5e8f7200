"""A machine for tests of the archive: a cache of its own, one tool of one file, and two layers of a few bytes."""

from pathlib import Path

import pytest

from devcluster import archive, oci, pinned, system_images, toolchain
from devcluster.cache import cache_root
from devcluster.toolchain import Tool

TOOL = Tool(name="hello", packages={"hello": "."}, cpu_minutes=0.1)
BASE, PAUSE, PROMETHEUS = "base-0123456789ab.tar", "pause-0123456789ab.tar", "prometheus-0123456789ab.tar"


def _layer(name: str, content: bytes) -> oci.Layer:
    return oci.cached_layer(system_images.images_cache() / name, lambda target: target.write_bytes(content))


def machine(directory: Path, monkeypatch: pytest.MonkeyPatch, *, full: bool = False) -> Path:
    """Its cache. `full`: everything is built; the layers come from their functions as they would."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
    monkeypatch.setattr(pinned, "TOOLS", directory / "tools")
    monkeypatch.setattr(toolchain, "TOOLCHAIN", (TOOL,))
    monkeypatch.setattr(archive, "TOOLCHAIN", (TOOL,))
    monkeypatch.setattr(toolchain, "BY_NAME", {"hello": TOOL})
    monkeypatch.setattr(system_images, "base_layer_name", lambda: BASE)
    monkeypatch.setattr(system_images, "pause_layer_name", lambda: PAUSE)
    monkeypatch.setattr(system_images, "prometheus_layer_name", lambda: PROMETHEUS)
    monkeypatch.setattr(system_images, "prometheus_layer", lambda: _layer(PROMETHEUS, b"prometheus"))
    monkeypatch.setattr(system_images, "base_layer", lambda: _layer(BASE, b"base"))
    image = oci.Image(name="pause", layers=(), config=b"", manifest=b"")
    monkeypatch.setattr(
        system_images, "pause", lambda: oci.Image(name=image.name, layers=[_layer(PAUSE, b"pause")], config=b"", manifest=b"")
    )
    TOOL.source.mkdir(parents=True)
    (TOOL.source / "go.mod").write_text("go 1.26\n")
    (TOOL.source / "go.sum").write_text("")
    cache_root().mkdir(parents=True)
    if full:
        entry = toolchain.entry(TOOL)
        entry.mkdir(parents=True)
        (entry / "hello").write_bytes(b"hello, compiled")
        (entry / "hello").chmod(0o755)
        toolchain.write_manifest(TOOL, entry, wall_s=1.0)
    return cache_root()
