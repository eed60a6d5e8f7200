"""Delivery of models: whole or not at all, from the sources to the shared store and from there to each replica."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model_sync import catalog, gguf, publish, server, store
from model_sync.__main__ import main
from model_sync.fetch import Pace
from model_sync.follow import Replica
from model_sync.intake import Intake
from model_sync.proxy import Proxy
from model_sync.publish import Declared, Writer
from tests import tiny_gguf

NO_SERVER = "http://127.0.0.1:9"
ROOT = Path(__file__).resolve().parents[2]
MODEL = Declared("one:1", "image", "", 2**21, 4096, "", 0, "-1")
TWO = replace(MODEL, name="ns/two:2")


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("seed")
    for name, text in (("one:1", "first script here"), ("ns/two:2", "second script here"), ("three:3", "third script here")):
        gguf.add(name, tiny_gguf.make(work / "m.gguf", text), work / "store")
    return work / "store"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def writer(seed: Path, shared: Path) -> Writer:
    return Writer(seed, Intake(shared, None, Pace(0), verify=False))


@pytest.fixture
def replica(shared: Path, tmp_path: Path) -> Replica:
    return Replica(shared, tmp_path / "hot", 0, None, keep_s=60, server=NO_SERVER)


def names(path: Path) -> list[str]:
    found = catalog.read(path)
    return [entry.name for entry in found.models] if found else []


def weights(path: Path, name: str) -> Path:
    manifest = json.loads((path / store.manifest_path(name)).read_text())
    return path / "blobs" / manifest["layers"][0]["digest"].replace(":", "-")


def flip(path: Path) -> None:
    """Another byte at the end, in place."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def blobs(path: Path) -> set[str]:
    return {each.name for each in (path / "blobs").iterdir()}


def test_a_published_model_has_its_context_and_is_in_the_catalog_by_its_manifest(writer: Writer, shared: Path) -> None:
    assert writer.publish(0, [MODEL]) == []
    (entry,) = (catalog.read(shared) or catalog.Catalog()).models
    content = (shared / store.manifest_path("one:1")).read_bytes()
    assert (entry.name, entry.digest, entry.context_length, entry.keep_alive) == ("one:1", store.file_digest(content), 4096, "-1")
    params = [layer for layer in json.loads(content)["layers"] if layer["mediaType"] == store.PARAMS_LAYER]
    assert [json.loads((shared / "blobs" / layer["digest"].replace(":", "-")).read_text()) for layer in params] == [{"num_ctx": 4096}]
    assert entry.size == sum(blob.size for blob in store.blobs(content, shared))


def test_the_parameters_of_the_source_stay(seed: Path, writer: Writer, shared: Path, tmp_path: Path) -> None:
    source = tmp_path / "other"
    gguf.add("one:1", tiny_gguf.make(tmp_path / "m.gguf", "first script here"), source)
    path = source / store.manifest_path("one:1")
    manifest = json.loads(path.read_text())
    blob = store.write_blob(source, b'{"stop":["x"],"num_ctx":512}')
    manifest["layers"].append({"mediaType": store.PARAMS_LAYER, "digest": blob.digest, "size": blob.size})
    path.write_text(json.dumps(manifest))
    writer.seed = source
    writer.publish(0, [MODEL])
    layers = json.loads((shared / store.manifest_path("one:1")).read_text())["layers"]
    (params,) = [layer for layer in layers if layer["mediaType"] == store.PARAMS_LAYER]
    assert json.loads((shared / "blobs" / params["digest"].replace(":", "-")).read_text()) == {"stop": ["x"], "num_ctx": 4096}


def test_a_second_run_writes_nothing(writer: Writer, shared: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in shared.rglob("*") if path.is_file() and path.name != ".sync.lock"}

    writer.publish(0, [MODEL, TWO])
    before = times()
    writer.publish(0, [MODEL, TWO])
    assert times() == before


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (replace(MODEL, digest="sha256:" + "0" * 64), "want sha256:0000"),
        (replace(MODEL, quantization="Q4_K_M"), "got quantization F16, want Q4_K_M"),
        (replace(MODEL, size=1000), "want at most size 1000"),
        (replace(MODEL, name="absent:1"), "got no manifest, want one of one:1, three:3, ns/two:2"),
        (replace(MODEL, source="file:///nowhere/x.gguf", digest="sha256:" + "0" * 64), "got No such file or directory"),
    ],
)
def test_a_model_that_is_not_as_declared_is_refused_and_the_others_are_published(
    writer: Writer, shared: Path, model: Declared, reason: str
) -> None:
    (problem,) = writer.publish(0, [model, TWO])
    assert isinstance(problem, store.StoreError)
    assert f"models.{model.name}: " in str(problem)
    assert reason in str(problem)
    assert names(shared) == ["ns/two:2"]


def test_a_version_that_cannot_be_delivered_leaves_the_one_that_is_served(writer: Writer, shared: Path) -> None:
    writer.publish(0, [MODEL])
    before = catalog.read(shared) or catalog.Catalog()
    (problem,) = writer.publish(0, [replace(MODEL, digest="sha256:" + "0" * 64)])
    assert "do not use it" in str(problem)
    assert catalog.read(shared) == replace(before, problems={"one:1": str(problem)})


def test_a_damaged_seed_is_refused(seed: Path, writer: Writer, shared: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    gguf.add("one:1", tiny_gguf.make(tmp_path / "m.gguf", "first script here"), copied)
    flip(weights(copied, "one:1"))
    writer.seed = copied
    (problem,) = writer.publish(0, [MODEL])
    assert "do not use it" in str(problem)
    assert names(shared) == []
    assert not (shared / store.manifest_path("one:1")).exists()


def test_a_damaged_blob_of_the_shared_store_is_fetched_again_when_asked(writer: Writer, shared: Path) -> None:
    writer.publish(0, [MODEL])
    good = weights(shared, "one:1").read_bytes()
    flip(weights(shared, "one:1"))
    writer.intake.verify = True
    assert writer.publish(0, [MODEL]) == []
    assert weights(shared, "one:1").read_bytes() == good


def test_a_truncated_blob_of_the_shared_store_is_always_fetched_again(writer: Writer, shared: Path) -> None:
    writer.publish(0, [MODEL])
    good = weights(shared, "one:1").read_bytes()
    weights(shared, "one:1").write_bytes(good[:100])
    assert writer.publish(0, [MODEL]) == []
    assert weights(shared, "one:1").read_bytes() == good


def test_a_volume_that_is_too_small_is_named_before_a_byte_is_fetched(writer: Writer, shared: Path) -> None:
    writer.intake.capacity = 1000
    (problem,) = writer.publish(0, [MODEL])
    assert f"{shared}: got 1000 bytes free, want " in str(problem)
    assert "enlarge storage.shared.size" in str(problem)
    assert blobs(shared) == set()


def test_cleaning_removes_what_the_catalog_does_not_name(writer: Writer, shared: Path) -> None:
    writer.publish(0, [MODEL, TWO])
    gone = weights(shared, "ns/two:2").name
    (shared / "blobs" / ".sha256-0.partial").write_text("left")
    writer.publish(0, [MODEL])
    assert gone in blobs(shared), "readers may still copy it"
    assert publish.clean(shared) == ["ns/two:2"]
    assert gone not in blobs(shared)
    assert ".sha256-0.partial" not in blobs(shared)
    assert weights(shared, "one:1").exists()
    assert [store.display_name(path) for path in store.manifests(shared)] == ["one:1"]
    assert not (shared / "manifests" / store.DEFAULT_HOST / "ns").exists(), "an empty directory stops a pruning Ollama"


def test_cleaning_without_a_catalog_removes_nothing(seed: Path) -> None:
    with pytest.raises(store.StoreError, match="run the writer first"):
        publish.clean(seed)
    assert weights(seed, "one:1").exists()


def test_a_replica_gets_the_catalog_and_exactly_its_models(writer: Writer, replica: Replica, shared: Path) -> None:
    writer.publish(0, [MODEL, TWO])
    assert replica.hydrate() == []
    assert catalog.read(replica.store) == catalog.read(shared)
    for name in ("one:1", "ns/two:2"):
        assert weights(replica.store, name).read_bytes() == weights(shared, name).read_bytes()
        assert weights(replica.store, name).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("fleet", [1, 2, 3, 5])
def test_every_model_has_as_many_replicas_as_it_asks_for(fleet: int) -> None:
    for name in (f"m{index}:1" for index in range(40)):
        for count in range(fleet + 1):
            holders = [ordinal for ordinal in range(fleet) if catalog.is_held_by(name, count, fleet, ordinal)]
            assert len(holders) == (count or fleet)
    every = {ordinal for index in range(40) for ordinal in range(fleet) if catalog.is_held_by(f"m{index}:1", 1, fleet, ordinal)}
    assert every == set(range(fleet)), "no replica is left without work"


def test_a_grown_fleet_moves_only_what_the_new_replica_takes() -> None:
    for index in range(40):
        before = {ordinal for ordinal in range(3) if catalog.is_held_by(f"m{index}", 1, 3, ordinal)}
        after = {ordinal for ordinal in range(4) if catalog.is_held_by(f"m{index}", 1, 4, ordinal)}
        assert after in (before, {3})


def test_a_replica_without_one_of_its_models_serves_the_others(writer: Writer, replica: Replica, shared: Path) -> None:
    writer.publish(0, [MODEL, TWO])
    flip(weights(shared, "one:1"))
    (problem,) = replica.hydrate()
    assert problem.startswith("one:1: ")
    assert "it is damaged, set delivery.verify and deploy to repair it" in problem
    assert names(replica.store) == ["ns/two:2"]
    assert weights(shared, "one:1").name not in blobs(replica.store)
    flip(weights(shared, "one:1"))
    assert replica.hydrate() == []
    assert names(replica.store) == ["one:1", "ns/two:2"]


def test_a_missing_shared_blob_leaves_the_model_out(writer: Writer, replica: Replica, shared: Path) -> None:
    writer.publish(0, [MODEL])
    weights(shared, "one:1").unlink()
    (problem,) = replica.hydrate()
    assert "got No such file or directory" in problem
    assert names(replica.store) == []


def test_a_truncated_copy_is_repaired(writer: Writer, replica: Replica, shared: Path) -> None:
    writer.publish(0, [MODEL])
    replica.hydrate()
    target = weights(replica.store, "one:1")
    target.write_bytes(target.read_bytes()[:100])
    assert replica.hydrate() == []
    assert target.read_bytes() == weights(shared, "one:1").read_bytes()


def test_a_manifest_that_is_not_the_catalogs_is_not_taken(writer: Writer, replica: Replica, shared: Path) -> None:
    writer.publish(0, [MODEL])
    path = shared / store.manifest_path("one:1")
    path.write_bytes(path.read_bytes() + b" ")
    (problem,) = replica.hydrate()
    assert "got manifest sha256:" in problem
    assert names(replica.store) == []


def test_a_new_version_takes_the_place_of_the_old_one(writer: Writer, replica: Replica) -> None:
    writer.publish(0, [MODEL])
    replica.hydrate()
    old = catalog.read(replica.store)
    writer.publish(0, [replace(MODEL, context_length=8192)])
    assert replica.hydrate() == []
    assert catalog.read(replica.store) != old
    assert [path.name for path in (replica.store / ".retired").iterdir()] == [(old or catalog.Catalog()).models[0].digest.partition(":")[2]]


def test_the_version_that_is_here_is_served_while_the_new_one_cannot_come(writer: Writer, replica: Replica) -> None:
    writer.publish(0, [MODEL])
    replica.hydrate()
    old = catalog.read(replica.store) or catalog.Catalog()
    writer.publish(0, [replace(MODEL, name="one:1", context_length=8192), TWO])
    replica.capacity = store.used(replica.store)
    problems = replica.hydrate()
    assert all("enlarge storage.hot.size" in problem for problem in problems)
    assert catalog.read(replica.store) == replace(old, problems={"one:1": f"models.{problems[0]}", "ns/two:2": f"models.{problems[1]}"})


Published = Callable[..., None]


@pytest.fixture
def published(writer: Writer, replica: Replica) -> Published:
    def publish_and_hydrate(*models: Declared) -> None:
        writer.publish(0, models)
        publish.clean(writer.store)
        replica.hydrate()

    return publish_and_hydrate


def test_a_removed_model_is_hidden_at_once_and_its_bytes_go_later(published: Published, replica: Replica) -> None:
    published(MODEL, TWO)
    gone = weights(replica.store, "ns/two:2")
    published(MODEL)
    assert names(replica.store) == ["one:1"]
    assert [store.display_name(path) for path in store.manifests(replica.store)] == ["one:1"]
    assert replica.evict() is True
    assert gone.exists()
    replica.keep_s = 0
    assert replica.evict() is False
    assert not gone.exists()
    assert weights(replica.store, "one:1").exists()


def test_a_model_that_comes_back_is_not_copied_again(published: Published, replica: Replica, capsys: pytest.CaptureFixture[str]) -> None:
    published(MODEL, TWO)
    before = weights(replica.store, "ns/two:2").stat()
    published(MODEL)
    published(MODEL, TWO)
    assert "ns/two:2: 0 bytes copied" in capsys.readouterr().out
    assert weights(replica.store, "ns/two:2").stat().st_ino == before.st_ino
    assert list((replica.store / ".retired").iterdir()) == []


def test_above_the_high_watermark_the_least_recently_used_goes_first_down_to_the_low_one(published: Published, replica: Replica) -> None:
    three = replace(MODEL, name="three:3")
    published(MODEL, TWO, three)
    files = {name: weights(replica.store, name) for name in ("one:1", "ns/two:2", "three:3")}
    digests = {entry.name: entry.digest for entry in (catalog.read(replica.store) or catalog.Catalog()).models}
    published(MODEL)
    # ns/two:2 was used after three:3.
    for name, age in (("ns/two:2", 10), ("three:3", 20)):
        os.utime(replica.store / ".retired" / digests[name].partition(":")[2], (time.time() - age, time.time() - age))
    replica.capacity = int(store.used(replica.store) / 0.95)
    replica.evict()
    assert not files["three:3"].exists()
    assert files["ns/two:2"].exists(), "two thirds are below the low watermark"
    assert files["one:1"].exists()


def test_room_for_a_new_model_is_made_first(published: Published, replica: Replica, writer: Writer) -> None:
    published(MODEL, TWO)
    gone = weights(replica.store, "ns/two:2")
    replica.capacity = int(store.used(replica.store) * 1.1)
    published(MODEL, replace(MODEL, name="three:3"))
    assert names(replica.store) == ["one:1", "three:3"]
    assert not gone.exists()


def test_what_a_process_has_open_is_never_evicted(published: Published, replica: Replica) -> None:
    published(MODEL, TWO)
    used = weights(replica.store, "ns/two:2")
    replica.keep_s = 0
    with used.open("rb"):
        published(MODEL)
        assert replica.evict() is True
        assert used.exists()
    assert server.is_open(used) is False
    assert replica.evict() is False
    assert not used.exists()


def rot(path: Path) -> None:
    """Another byte in place; size and time stay."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_an_earlier_life_left_is_hashed_once_and_copied_again_when_it_is_damaged(
    published: Published, replica: Replica, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published(MODEL, TWO)
    rotten, sound = weights(replica.store, "one:1"), weights(replica.store, "ns/two:2")
    rot(rotten)
    kept = sound.stat().st_ino
    assert replica.hydrate() == []
    assert rotten.read_bytes() != weights(shared, "one:1").read_bytes(), "this process has hashed it, and does not read it again"
    capsys.readouterr()

    restarted = Replica(shared, replica.store, 0, None, keep_s=60, server=NO_SERVER)
    assert restarted.hydrate() == []
    said = capsys.readouterr().out
    assert f"warning: one:1: {rotten}: got content sha256:" in said
    assert "it is damaged, copying it again" in said
    assert f"ns/two:2: {sound.stat().st_size} bytes verified in " in said
    assert rotten.read_bytes() == weights(shared, "one:1").read_bytes()
    assert sound.stat().st_ino == kept, "a sound one stays where it is"
    assert names(replica.store) == ["one:1", "ns/two:2"]
    assert restarted.hydrate() == []
    assert capsys.readouterr().out == ""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00no such thing" * 10)


def unreadable(path: Path) -> None:
    """Every read fails, as of a bad sector."""
    path.unlink()
    path.mkdir()
    (path / "x").touch()


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = (rot, cut, empty, garbage, unreadable, gone)


def content(path: Path) -> dict[Path, bytes]:
    """Of every file in a store that a server or a follower reads."""
    files = [each for each in path.rglob("*") if each.is_file() and each.name != ".sync.lock" and ".retired" not in each.parts]
    return {each.relative_to(path): each.read_bytes() for each in files}


@pytest.mark.parametrize("damage", DAMAGES)
def test_b1_damage_to_any_file_of_a_replicas_store_heals(
    published: Published, replica: Replica, shared: Path, damage: Callable[[Path], None]
) -> None:
    published(MODEL, TWO, replace(MODEL, name="three:3"))
    published(MODEL, TWO)
    wanted = {name: found for name, found in content(replica.store).items() if name in content(shared)}
    hurt = [path for path in sorted(replica.store.rglob("*")) if path.is_file() and path.name != ".sync.lock"]
    assert {"catalog.json", "1", ".retired"} <= {path.name for path in hurt} | {path.parent.name for path in hurt}
    for path in hurt:
        if path.exists():
            damage(path)
        restarted = Replica(shared, replica.store, 0, None, keep_s=60, server=NO_SERVER)
        assert restarted.hydrate() == [], path
        restarted.evict()
        found = content(replica.store)
        assert {name: found[name] for name in wanted} == wanted, path
        assert names(replica.store) == ["one:1", "ns/two:2"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_b1_damage_to_any_file_of_the_shared_store_harms_its_model_alone_and_heals(
    published: Published, replica: Replica, writer: Writer, shared: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A new replica serves the other model, or waits where the catalog itself is gone; one that has both goes on; the writer repairs it."""
    published(MODEL, TWO)
    wanted, writer.intake.verify = content(shared), True
    for number, name in enumerate(wanted):
        damage(shared / name)
        fresh = Replica(shared, tmp_path / f"fresh-{number}", 0, None, keep_s=60, server=NO_SERVER)
        restarted = Replica(shared, replica.store, 0, None, keep_s=60, server=NO_SERVER)
        if name != Path("catalog.json"):
            problems, found = fresh.hydrate(), catalog.read(fresh.store) or catalog.Catalog()
            assert len(found.models) + len(problems) == 2, name
            assert [f"models.{line}" for line in problems] == list(found.problems.values())
            assert restarted.hydrate() == []
        elif damage is not cut:  # All but the last line break is as good as all of it.
            with pytest.raises(store.StoreError, match=r"catalog\.json: got"):
                fresh.hydrate()
            (problem,) = restarted.hydrate()
            assert problem.startswith(str(shared / "catalog.json"))
        assert names(replica.store) == ["one:1", "ns/two:2"], name
        assert writer.publish(0, [MODEL, TWO]) == [], name
        assert content(shared) == wanted, name


def test_a_cleaner_keeps_the_blobs_of_a_manifest_that_it_cannot_read(published: Published, shared: Path) -> None:
    published(MODEL, TWO)
    before = blobs(shared)
    garbage(shared / store.manifest_path("one:1"))
    with pytest.raises(store.StoreError, match=r"set delivery\.verify and deploy to repair it"):
        publish.clean(shared)
    assert blobs(shared) == before


def test_a_model_that_is_damaged_in_both_tiers_is_not_served_and_the_others_are(
    published: Published, replica: Replica, shared: Path
) -> None:
    published(MODEL, TWO)
    for path in (shared, replica.store):
        rot(weights(path, "one:1"))
    restarted = Replica(shared, replica.store, 0, None, keep_s=60, server=NO_SERVER)
    (problem,) = restarted.hydrate()
    assert "it is damaged, set delivery.verify and deploy to repair it" in problem
    assert names(replica.store) == ["ns/two:2"]


def test_an_interrupted_copy_is_removed(writer: Writer, replica: Replica) -> None:
    writer.publish(0, [MODEL])
    replica.hydrate()
    left = replica.store / "blobs" / ".sha256-0.partial"
    left.write_text("left")
    orphan = replica.store / "blobs" / ("sha256-" + "0" * 64)
    orphan.write_text("of a killed copy")
    replica.hydrate()
    assert not left.exists()
    assert not orphan.exists()


def test_a_replica_loads_nothing_of_the_writers(shared: Path, tmp_path: Path) -> None:
    """It would start later, and have more memory, for what it never asks."""
    ask = "import sys; from model_sync.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    argv = ["follow", str(shared), str(tmp_path / "own"), "--ordinal=0", f"--marker={tmp_path / 'marker'}", "--once"]
    loaded = subprocess.run([sys.executable, "-c", ask, *argv], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "model_sync.follow" in loaded
    assert {"model_sync.publish", "model_sync.access", "model_sync.fetch"} & {*loaded} == set()


def test_the_first_pass_waits_for_the_writer(writer: Writer, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    shared.mkdir()
    arguments = ["follow", str(shared), str(tmp_path / "hot"), "--ordinal=0", f"--marker={marker}", "--once", f"--server={NO_SERVER}"]
    assert main(arguments) == 1
    assert not marker.exists(), "that of an earlier run says nothing"
    assert "wait for the writer, or run it" in capsys.readouterr().err
    writer.publish(0, [MODEL])
    assert main(arguments) == 0
    assert marker.exists()


@pytest.mark.parametrize("name", ["untagged", "a/b/c/d:1", "../x:1", "x:", ":1", "a b:1"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(store.StoreError, match="model name: got"):
        store.manifest_path(name)


def test_another_file_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not a model")
    with pytest.raises(store.StoreError, match="got another file type, want GGUF"):
        gguf.add("x:1", tmp_path / "x", tmp_path / "store")


def test_a_file_that_ends_inside_of_its_metadata_is_refused(tmp_path: Path) -> None:
    whole = tiny_gguf.make(tmp_path / "whole.gguf", "a script").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:100])
    with pytest.raises(store.StoreError, match="the file is cut off"):
        gguf.add("x:1", tmp_path / "cut.gguf", tmp_path / "store")


@pytest.mark.parametrize("content", ["", "{}", '{"version": 2, "fleet": 0, "models": []}', '{"version": 1, "fleet": 0, "models": [{}]}'])
def test_a_catalog_of_another_form_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / catalog.FILE).write_text(content)
    with pytest.raises(store.StoreError, match=r"catalog\.json: got"):
        catalog.read(tmp_path)


@pytest.mark.parametrize(
    ("host", "led"),
    [
        ("huggingface.co", True),
        ("cdn-lfs.huggingface.co.", True),
        ("files.example.com", False),
        ("FILES.example.com", False),
        ("a.files.example.com", False),
        ("other.example.com", True),
        ("afiles.example.com", True),
        ("deep.below.corp", False),
        ("corp", False),
        ("203.0.113.7", False),
        ("2001:db8::7", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("files.localhost", False),
        ("minio", False),
        ("minio.models.svc", False),
        ("minio.models.svc.cluster.local", False),
        ("minio.models.svc.example.com", True),
        ("", False),
    ],
)
def test_a_proxy_leads_to_names_outside_and_to_nothing_else(host: str, led: bool) -> None:
    assert Proxy("http://proxy.example.com:3128", ("files.example.com", ".corp")).leads_to(host) is led
