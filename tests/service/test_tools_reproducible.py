"""A build in an empty cache, at another path, gives the bytes of the tool that is used: in Go alone, and with C in it. All tools: tests/proofs."""

import dataclasses
import subprocess
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


def test_c_is_told_the_same_time_at_every_build() -> None:
    """The tool above has no C that asks for the time; Ollama's has, and takes too long to be built twice here."""
    for tool in toolchain.TOOLCHAIN:
        if tool.cgo:
            argv = ["gcc", "-E", "-P", "-"]
            done = subprocess.run(
                argv, env=toolchain.environment(tool), input="__DATE__ __TIME__", capture_output=True, text=True, check=True
            )
            assert done.stdout.strip() == '"Jan  1 1970" "00:00:00"', tool.name
