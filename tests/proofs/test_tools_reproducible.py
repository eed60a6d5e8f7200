"""Every tool of `make up`, built again in an empty cache, has the digest of the one that is used. Half an hour on two cores."""

from pathlib import Path

import pytest

from devcluster import toolchain
from tests.empty_cache import empty_cache
from tests.proofs.records import Proof

PROOF = Proof("tools-reproducible", guards=("tools", "devcluster/go.py", "devcluster/pinned.py", "devcluster/toolchain.py"))
TOOLS = [tool for tool in toolchain.TOOLCHAIN if not tool.on_demand]


def digests() -> dict[str, str]:
    binaries = toolchain.ensure([tool.name for tool in TOOLS])
    return {path.name: toolchain.sha256(path) for path in sorted(binaries.iterdir())}


@pytest.mark.timeout(3 * 3600)
def test_all_tools_are_the_same_when_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = digests()
    empty_cache(tmp_path / "again", monkeypatch)
    again = digests()
    assert set(used) == set().union(*(tool.files for tool in TOOLS))
    assert {name: digest for name, digest in again.items() if used[name] != digest} == {}
