"""A build in an empty cache, at another path, gives the bytes of the tool that is used: in Go alone, and with C in it. All tools: tests/proofs."""

import dataclasses
from pathlib import Path

import pytest

from devcluster import toolchain
from tests.empty_cache import empty_cache

BINARIES = {"containerd": "containerd-shim-runc-v2", "nvidia-container-toolkit": "nvidia-cdi-hook"}
"""Tool, and one of its binaries: the quickest to build of each kind."""


@pytest.mark.timeout(1200)
def test_a_second_build_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {toolchain.BY_NAME[name].cgo for name in BINARIES} == {False, True}
    used = toolchain.ensure(list(BINARIES))
    before = {binary: toolchain.sha256(used / binary) for binary in BINARIES.values()}
    alone = {
        name: dataclasses.replace(tool, packages={binary: tool.packages[binary]})
        for name, binary in BINARIES.items()
        if (tool := toolchain.BY_NAME[name])
    }
    monkeypatch.setattr(toolchain, "TOOLCHAIN", tuple(alone.values()))
    monkeypatch.setattr(toolchain, "BY_NAME", alone)
    cache = empty_cache(tmp_path / "another-path", monkeypatch)
    again = toolchain.ensure(list(alone))
    assert {path.name: toolchain.sha256(path) for path in again.iterdir()} == before
    assert not (cache / "go-build").exists()
