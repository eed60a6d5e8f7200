"""A model is available whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model_sync import gguf, store
from model_sync.__main__ import sync
from tests import tiny_gguf


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, text in (("one:1", "first script here"), ("ns/two:2", "second script here")):
        gguf.add(name, tiny_gguf.make(tmp_path / "m.gguf", text), tmp_path / "source")
    return tmp_path / "source"


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".sync.lock"}


def weights(source: Path, name: str) -> Path:
    manifest = json.loads((source / store.manifest_path(name)).read_text())
    return source / "blobs" / manifest["layers"][0]["digest"].replace(":", "-")


def test_a_copy_is_the_same_store(source: Path, tmp_path: Path) -> None:
    assert sync(source, tmp_path / "copy") == []
    assert files(tmp_path / "copy") == files(source)


def test_the_same_file_makes_the_same_store(source: Path, tmp_path: Path) -> None:
    gguf.add("one:1", tiny_gguf.make(tmp_path / "again.gguf", "first script here"), tmp_path / "again")
    assert files(tmp_path / "again").items() <= files(source).items()


def test_a_second_run_copies_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sync(source, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*") if path.is_file() and path.name != ".sync.lock"}
    sync(source, tmp_path / "copy")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert capsys.readouterr().out.count("present") == 2


def test_a_damaged_blob_is_refused_and_the_other_model_is_copied(source: Path, tmp_path: Path) -> None:
    damaged = weights(source, "one:1")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    problems = sync(source, tmp_path / "copy")
    assert len(problems) == 1
    assert f"want {damaged.name.replace('-', ':')}; the source is damaged" in problems[0]
    assert [store.display_name(path) for path in store.manifests(tmp_path / "copy")] == ["ns/two:2"]
    assert not (tmp_path / "copy" / "blobs" / damaged.name).exists()


def test_a_truncated_copy_is_repaired(source: Path, tmp_path: Path) -> None:
    sync(source, tmp_path / "copy")
    target = weights(tmp_path / "copy", "one:1")
    target.write_bytes(target.read_bytes()[:100])
    assert sync(source, tmp_path / "copy") == []
    assert files(tmp_path / "copy") == files(source)


def test_an_altered_copy_is_found_when_asked(source: Path, tmp_path: Path) -> None:
    sync(source, tmp_path / "copy")
    target = weights(tmp_path / "copy", "one:1")
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    assert sync(source, tmp_path / "copy", verify=True) == []
    assert files(tmp_path / "copy") == files(source)


def test_a_missing_blob_publishes_nothing(source: Path, tmp_path: Path) -> None:
    weights(source, "one:1").unlink()
    problems = sync(source, tmp_path / "copy")
    assert "got no blob sha256-" in problems[0]
    assert not (tmp_path / "copy" / store.manifest_path("one:1")).exists()


def test_a_source_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "got no directory manifests" in sync(tmp_path / "empty", tmp_path / "copy")[0]


def test_two_writers_take_turns(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "model_sync", str(source), str(tmp_path / "copy")]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [writer.communicate(timeout=60) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], outputs
    assert files(tmp_path / "copy") == files(source)
    assert sum("bytes copied" in out for out, _ in outputs) == 1


@pytest.mark.parametrize("name", ["untagged", "a/b/c/d:1", "../x:1", "x:", ":1", "a b:1"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(store.StoreError, match="model name: got"):
        store.manifest_path(name)


def test_another_file_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not a model")
    with pytest.raises(store.StoreError, match="got another file type, want GGUF"):
        gguf.add("x:1", tmp_path / "x", tmp_path / "store")
