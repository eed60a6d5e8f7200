"""Models of several files: which of them are taken from each source, and how each is known to be the right one."""

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_server.store import find_gguf, find_tree
from model_sync import catalog, files, gguf, store, tree
from model_sync.__main__ import main
from model_sync.access import Access
from model_sync.catalog import NO_REPLICA
from model_sync.declared import Declared
from model_sync.fetch import Pace
from model_sync.intake import Intake
from model_sync.publish import Writer
from model_sync.source import Source
from model_sync.store import StoreError
from tests import tiny_gguf

DIGEST = "sha256:" + "1" * 64
TREE = Declared("tree:1", "image", "", 1 << 20, 4096, "", NO_REPLICA, "-1", "safetensors")
SPLIT = replace(TREE, name="split:1", format="gguf", size=1 << 22)
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}


def safetensors(data: bytes) -> bytes:
    head = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(head)) + head + data


FILES = {
    "config.json": b"{}",
    "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
    tree.INDEX: json.dumps(INDEX).encode(),
    "model-00001-of-00002.safetensors": safetensors(b"first"),
    "model-00002-of-00002.safetensors": safetensors(b"second"),
    "consolidated.safetensors": safetensors(b"the same again"),
    "original/model.safetensors": safetensors(b"and again"),
    "modeling.py": b"print()",
    "pytorch_model.bin": b"pickle",
}
TAKEN = set(list(FILES)[:5])


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["config.json", "model.safetensors"], ["model.safetensors"]),
        (["config.json", "model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["config.json", "a.safetensors", "b.safetensors", "onnx/c.safetensors"], ["a.safetensors", "b.safetensors"]),
        (
            ["config.json", "2_Dense/model.safetensors", "model.safetensors", "modules.json"],
            ["2_Dense/model.safetensors", "model.safetensors"],
        ),
    ],
)
def test_the_weights_are_those_that_an_engine_reads(names: list[str], wanted: list[str]) -> None:
    modules = b'[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]'
    assert tree.chosen(tree.taken(names), lambda _: modules) == wanted


def test_an_index_names_its_files_and_none_may_be_missing() -> None:
    assert tree.chosen(tree.taken(FILES), FILES.__getitem__) == sorted(INDEX["weight_map"].values())
    with pytest.raises(StoreError, match=r"got no model-00002-of-00002.safetensors beside it, want every file that it names"):
        tree.chosen([name for name in tree.taken(FILES) if "00002-of" not in name], FILES.__getitem__)


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": []}', b"[" * 100_000])
def test_an_index_of_another_form_is_refused(index: bytes) -> None:
    with pytest.raises(StoreError, match="got another form"):
        tree.chosen(["config.json", "a.safetensors", tree.INDEX], lambda _: index)


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", "a b.safetensors", "a//b.safetensors", ".a/../b.safetensors"])
def test_weights_that_no_store_can_name_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="got a path with other characters"):
        tree.taken([name])
    assert tree.taken([name.replace("safetensors", "json")]) == [], "what is not needed is left out"


def test_the_parts_of_a_split_file_are_known_by_the_name_of_one() -> None:
    assert gguf.parts_of("x/m-00002-of-00003.gguf") == [f"x/m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for whole in ("m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-99999.gguf"):
        assert gguf.parts_of(whole) == [whole]


def test_a_list_is_what_sha256sum_writes() -> None:
    content = f"{'1' * 64}  ./config.json\n{'2' * 64} *sub/a b.txt\n".encode()
    found = files.of_list("https://h/m/SHA256SUMS", content, Access())
    assert [(file.path, file.digest, file.source.url) for file in found] == [
        ("config.json", f"sha256:{'1' * 64}", "https://h/m/config.json"),
        ("sub/a b.txt", f"sha256:{'2' * 64}", "https://h/m/sub/a%20b.txt"),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html>", "got the line '<html>', want a SHA-256, two spaces and a path"),
        (b"1" * 64 + b"  a\n" + b"2" * 64 + b"  a\n", "got a path twice"),
        (b"".join(b"%064d  f%d.json\n" % (n, n) for n in range(1001)), "got 1001 files, want at most 1000"),
    ],
)
def test_a_list_of_another_form_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        files.of_list("https://h/SHA256SUMS", content, Access())


def artifact(content: dict[str, bytes], work: Path) -> bytes:
    """What `oras push` makes of these files; its blobs lie in `work`."""
    layers: list[dict[str, Any]] = []
    for name, each in content.items():
        blob = store.write_blob(work, each)
        layers.append(
            {"mediaType": "application/octet-stream", "digest": blob.digest, "size": blob.size, "annotations": {tree.TITLE: name}}
        )
    config = store.write_blob(work, b"{}")
    return json.dumps({"schemaVersion": 2, "config": {"digest": config.digest, "size": 2}, "layers": layers}).encode()


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "seed", Intake(tmp_path / "shared", None, Pace(0), verify=False))


def put(writer: Writer, model: Declared, content: dict[str, bytes]) -> None:
    store.write_file(writer.seed, writer.seed / store.manifest_path(model.name), artifact(content, writer.seed))


def test_a_tree_of_an_image_is_delivered_without_what_could_run_or_is_there_twice(writer: Writer, tmp_path: Path) -> None:
    put(writer, TREE, FILES)
    assert writer.publish(0, [TREE]) == []
    found, digest = find_tree(writer.store, "tree:1", tmp_path / "weights")
    assert {path.name for path in found.iterdir()} == TAKEN
    (tmp_path / "plain").mkdir()
    for name in TAKEN:
        (tmp_path / "plain" / name).write_bytes(FILES[name])
    assert tree.add("tree:1", tmp_path / "plain", tmp_path / "other") == digest, "the same files are the same model everywhere"


def test_a_tree_is_on_no_replica_of_the_fleet_and_a_server_copies_it(
    writer: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(writer, TREE, FILES)
    writer.publish(0, [TREE])
    (entry,) = (catalog.read(writer.store) or catalog.Catalog()).models
    assert not catalog.is_held_by(entry.name, entry.replicas, 2, 0)
    hot = tmp_path / "hot"
    for _ in range(2):
        assert main(["copy", str(writer.store), str(hot), "tree:1"]) == 0
    weights, _ = find_tree(hot, "tree:1", tmp_path / "weights")
    target = (weights / "model-00002-of-00002.safetensors").resolve()
    damaged = bytearray(target.read_bytes())
    damaged[-1] ^= 1
    target.write_bytes(damaged)
    assert main(["copy", str(writer.store), str(hot), "tree:1"]) == 0
    assert "it is damaged, copying it again" in capsys.readouterr().out
    assert target.read_bytes() == FILES["model-00002-of-00002.safetensors"]
    assert main(["copy", str(writer.store), str(hot), "other:1"]) == 1
    assert "other:1: got tree:1 in the catalog, want it; run the writer" in capsys.readouterr().err


def test_a_server_whose_volume_holds_one_version_gets_the_next(writer: Writer, tmp_path: Path) -> None:
    hot, sizes = tmp_path / "hot", 1 << 18
    for version in (b"1", b"2"):
        put(writer, TREE, {"config.json": b"{}", "model.safetensors": safetensors(version * sizes)})
        assert writer.publish(0, [TREE]) == []
        assert main(["copy", str(writer.store), str(hot), "tree:1", f"--capacity={sizes * 5 // 4}"]) == 0
    assert store.used(hot) < sizes * 5 // 4


def test_a_copy_that_fails_keeps_its_server_from_starting(writer: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(writer, TREE, FILES)
    writer.publish(0, [TREE])
    blob = store.Blob.of(FILES["model-00001-of-00002.safetensors"])
    (writer.store / "blobs" / blob.file_name).write_bytes(b"x" * blob.size)
    assert main(["copy", str(writer.store), str(tmp_path / "hot"), "tree:1"]) == 1
    assert "set delivery.verify and deploy to repair it" in capsys.readouterr().err
    assert main(["copy", str(tmp_path / "nothing"), str(tmp_path / "hot2"), "tree:1"]) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config.json": None}, "got no config.json with safetensors beside it"),
        ({"model-00002-of-00002.safetensors": None}, "got no model-00002-of-00002.safetensors beside it"),
        ({"model-00002-of-00002.safetensors": b"x" * 40}, "got no sound safetensors file"),
        ({"tokenizer_config.json": b'{"chat_template": "{{ x.__class__ }}"}'}, "got a chat template with __class__"),
        ({"model-00002-of-00002.safetensors": safetensors(b"x" * (1 << 20))}, "bytes of weights, want at most 1048576; raise models"),
    ],
)
def test_a_bad_tree_harms_that_model_alone_and_is_named(writer: Writer, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    other = replace(TREE, name="other:1")
    put(writer, other, FILES)
    put(writer, TREE, {name: content for name, content in (FILES | change).items() if content is not None})
    (problem,) = writer.publish(0, [TREE, other])
    assert str(problem).startswith("models.tree:1: ")
    assert says in str(problem)
    assert [entry.name for entry in (catalog.read(writer.store) or catalog.Catalog()).models] == ["other:1"]


def test_a_split_model_is_taken_whole_and_its_parts_lie_beside_each_other(writer: Writer, tmp_path: Path) -> None:
    parts = tiny_gguf.make_split(tmp_path / "part", "a model in parts")
    put(writer, SPLIT, {f"q4/{path.name}": path.read_bytes() for path in parts})
    assert writer.publish(0, [SPLIT]) == []
    first, _ = find_gguf(writer.store, "split:1", tmp_path / "weights")
    assert first.name == "part-00001-of-00002.gguf"
    assert [path.read_bytes() for path in sorted(first.parent.iterdir())] == [path.read_bytes() for path in parts]


@pytest.mark.parametrize(
    ("model", "names", "says"),
    [
        (SPLIT, [0], "got no part-00002-of-00002.gguf, want all of a model"),
        (SPLIT, [0, 0], "got part 0 of 2 in it, want 1 of 2"),
        (SPLIT, [1, 0], "got part 1 of 2 in it, want 0 of 2"),
        (
            replace(SPLIT, replicas=0),
            [0, 1],
            "got 2 parts, want one file for the fleet, whose engine loads no other; set models.<name>.replicas",
        ),
        (replace(SPLIT, quantization="Q4_K_M"), [0, 1], "got quantization F16, want Q4_K_M"),
    ],
)
def test_a_split_model_that_is_not_whole_is_refused(writer: Writer, tmp_path: Path, model: Declared, names: list[int], says: str) -> None:
    parts = tiny_gguf.make_split(tmp_path / "part", "a model in parts")
    content = {f"part-{number:05}-of-00002.gguf": parts[index].read_bytes() for number, index in enumerate(names, 1)}
    put(writer, model, content)
    (problem,) = writer.publish(0, [model])
    assert says in str(problem)


@pytest.mark.parametrize("number", [0, 1])
def test_s07_one_part_of_a_split_model_is_refused_by_its_source(writer: Writer, tmp_path: Path, number: int) -> None:
    part = tiny_gguf.make_split(tmp_path / "part", "a model in parts")[number]
    model = replace(SPLIT, source=f"file://{part}", digest=store.sha256(part), replicas=0)
    (problem,) = writer.publish(0, [model])
    assert str(problem).startswith(f"models.split:1: file://{part}: got one of 2 parts, want a model in one file; name a source that lists")
    assert str(problem).endswith("or join them with llama-gguf-split --merge")
    assert (catalog.read(writer.store) or catalog.Catalog()).models == ()


def test_one_gguf_of_an_artifact_is_a_model_that_the_fleet_takes(writer: Writer, tmp_path: Path) -> None:
    content = tiny_gguf.make(tmp_path / "m.gguf", "one file").read_bytes()
    model = replace(SPLIT, replicas=0)
    put(writer, model, {"m.gguf": content})
    assert writer.publish(0, [model]) == []
    path, digest = find_gguf(writer.store, "split:1", tmp_path / "weights")
    assert (digest, path.read_bytes()) == (f"sha256:{hashlib.sha256(content).hexdigest()}", content)
    put(writer, model, {"m.gguf": content, "n.gguf": content})
    (problem,) = writer.publish(0, [model])
    assert "got n.gguf beside m.gguf, want one model" in str(problem)


def test_git_names_what_it_has_as_git_does() -> None:
    assert files.git_name(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_layers_without_a_title_are_no_files(tmp_path: Path) -> None:
    document = json.loads(artifact({"config.json": b"{}"}, tmp_path))
    for notes in ({}, None, [], {tree.TITLE: 5}):
        document["layers"][0]["annotations"] = notes
        assert files.of_artifact(json.dumps(document).encode(), "m", Source) == []
