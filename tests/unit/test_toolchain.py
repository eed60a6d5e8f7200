"""The tool cache: a partial or altered entry is never used, and a change of any input makes a new one."""

import json
from pathlib import Path

import pytest

from devcluster import host, toolchain
from devcluster.toolchain import BY_NAME, TOOLCHAIN, Tool, is_intact, key
from infra import up


def entry(path: Path) -> Path:
    path.mkdir()
    (path / "tool").write_bytes(b"binary")
    digest = "9a3a45d01531a20e89ac6ae10b0b0beb0492acd7216a368aa062d1a5fecaf9cd"
    (path / "manifest.json").write_text(json.dumps({"files": {"tool": {"sha256": digest, "bytes": 6}}}))
    return path


def test_a_whole_entry_is_intact(tmp_path: Path) -> None:
    assert is_intact(entry(tmp_path / "entry"))


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "no manifest", "broken manifest"])
def test_a_damaged_entry_is_not(tmp_path: Path, damage: str) -> None:
    path = entry(tmp_path / "entry")
    match damage:
        case "truncated":
            (path / "tool").write_bytes(b"bin")
        case "altered":
            (path / "tool").write_bytes(b"binarx")
        case "missing":
            (path / "tool").unlink()
        case "no manifest":
            (path / "manifest.json").unlink()
        case _:
            (path / "manifest.json").write_text('{"files": {')
    assert not is_intact(path)


def test_the_key_follows_every_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "thing"
    module.mkdir()
    (module / "go.mod").write_text("module x\n\nrequire example.org/a v1.2.3\n")
    (module / "go.sum").write_text("a\n")
    monkeypatch.setattr(toolchain, "TOOLS", tmp_path)
    tool = Tool(name="thing", packages={"a": "example.org/a"}, cpu_minutes=1, version_of="example.org/a", variables={"v": "{version}"})
    first = key(tool, "go1.26.8")
    assert key(tool, "go1.26.8") == first
    assert key(tool, "go1.26.9") != first
    (module / "go.sum").write_text("b\n")
    assert key(tool, "go1.26.8") != first
    (module / "go.sum").write_text("a\n")
    (module / "go.mod").write_text("module x\n\nrequire example.org/a v1.2.4\n")
    assert key(tool, "go1.26.8") != first


def test_every_module_is_in_the_table_and_pinned() -> None:
    assert {path.name for path in toolchain.TOOLS.iterdir() if path.is_dir()} == set(BY_NAME)
    for tool in TOOLCHAIN:
        text = (toolchain.TOOLS / tool.name / "go.mod").read_text()
        assert (toolchain.TOOLS / tool.name / "go.sum").stat().st_size > 0
        for package in tool.packages.values():
            assert package.startswith(".") or any(package.startswith(word) for word in text.split() if "/" in word and "." in word), package


def test_make_up_builds_no_tool_that_only_tests_need(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ensure(names: list[str]) -> Path:
        asked.extend(names)
        raise toolchain.ToolchainError("enough")

    monkeypatch.setattr(host, "check", lambda: None)
    monkeypatch.setattr(toolchain, "ensure", ensure)
    with pytest.raises(toolchain.ToolchainError, match="enough"):
        up.start_embedded("none", 1)
    assert {"kubernetes", "ollama"} <= set(asked)
    assert "nvidia-container-toolkit" not in asked


def test_a_build_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "tools" / "hello"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module hello.example\n\ngo 1.26\n")
    (module / "go.sum").write_text("")
    (module / "main.go").write_text("package main\n\nfunc main() { broken }\n")
    monkeypatch.setattr(toolchain, "TOOLS", tmp_path / "tools")
    monkeypatch.setattr(toolchain, "TOOLCHAIN", (tool := Tool(name="hello", packages={"hello": "."}, cpu_minutes=0.1),))
    monkeypatch.setattr(toolchain, "BY_NAME", {"hello": tool})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(toolchain.ToolchainError, match="tools/hello: got a failed build of hello"):
        toolchain.ensure(["hello"])
    assert not list((tmp_path / "cache" / "modelfleet" / "tools").glob("hello-*"))
    (module / "main.go").write_text('package main\n\nfunc main() { println("hello") }\n')
    binaries = toolchain.ensure(["hello"])
    assert (binaries / "hello").stat().st_size > 1000
    built = next((tmp_path / "cache" / "modelfleet" / "tools").glob("hello-*"))
    (built / "hello").write_bytes(b"damaged")
    assert (toolchain.ensure(["hello"]) / "hello").stat().st_size > 1000
