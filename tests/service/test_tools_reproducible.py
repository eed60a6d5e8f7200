"""Two builds in two empty caches give the same bytes: one tool in Go alone, and one with C in it. All tools: tests/proofs."""

from pathlib import Path

import pytest

from devcluster import toolchain
from tests.empty_cache import empty_cache

QUICKEST = tuple(
    min((tool for tool in toolchain.TOOLCHAIN if not tool.wheel and tool.cgo is cgo), key=lambda tool: tool.cpu_minutes).name
    for cgo in (False, True)
)


@pytest.mark.timeout(1200)
def test_two_builds_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[dict[str, str]] = []
    for name in ("one", "another-with-a-longer-path"):
        with monkeypatch.context() as patch:
            cache = empty_cache(tmp_path / name, patch)
            binaries = toolchain.ensure(QUICKEST)
            built.append({path.name: toolchain.sha256(path) for path in sorted(binaries.iterdir())})
            assert not (cache / "go-build").exists(), "the second must not find what the first compiled"
    assert built[0] == built[1]
    assert set(built[0]) == set().union(*(toolchain.BY_NAME[name].files for name in QUICKEST))
