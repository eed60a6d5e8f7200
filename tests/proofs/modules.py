"""Go tools that a proof alone needs: a module below tests/proofs, compiled into the cache of the other tools."""

from pathlib import Path

import pytest

from devcluster import toolchain
from devcluster.pinned import Tool
from tests.proofs.records import ROOT


class Module(Tool):
    """Its `name` is that of its directory below tests/proofs."""

    @property
    def source(self) -> Path:
        return ROOT / "tests" / "proofs" / self.name


def compiled(module: Module, *others: str) -> Path:
    """The directory with the binaries of a module of ours and of tools that everybody has. Raises ToolchainError."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolchain, "TOOLCHAIN", (*toolchain.TOOLCHAIN, module))
        patch.setattr(toolchain, "BY_NAME", {**toolchain.BY_NAME, module.name: module})
        return toolchain.ensure([module.name, *others])
