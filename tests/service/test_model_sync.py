"""The writer and the followers as processes: against sources that lie, break off and stall, killed at any point, beside a real Ollama."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_sync import catalog, gguf, store
from tests import tiny_gguf
from tests.service import ollama, origins, registries
from tests.service.processes import ROOT

SCRIPT = "Hello from the tiny model."


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """About 1 MB."""
    return tiny_gguf.make(tmp_path_factory.mktemp("gguf") / "m.gguf", SCRIPT).read_bytes()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def origin(file: bytes) -> Iterator[origins.Origin]:
    with origins.serving(file) as found:
        yield found


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def model(source: str, content: bytes, **fields: Any) -> dict[str, Any]:
    common = {"context_length": 2048, "quantization": "F16", "replicas": 0, "keep_alive": "-1"}
    return {"name": "tiny:1", "source": source, "digest": sha256(content), "size": len(content), **common, **fields}


def writer(shared: Path, *models: dict[str, Any], options: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    shared.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "MODEL_SYNC_MODELS": json.dumps({"fleet": 0, "models": models})}
    argv = [sys.executable, "-m", "model_sync", "publish", str(shared.parent / "seed"), str(shared), "--attempts=4", *options]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def publish(shared: Path, *models: dict[str, Any], options: tuple[str, ...] = ()) -> tuple[int, str]:
    process = writer(shared, *models, options=options)
    _, error = process.communicate(timeout=60)
    return process.returncode, error


def names(path: Path) -> list[str]:
    found = catalog.read(path)
    return [entry.name for entry in found.models] if found else []


def blob(shared: Path, content: bytes) -> Path:
    return shared / "blobs" / sha256(content).replace(":", "-")


def test_a_file_is_fetched_once_however_often_the_writer_runs(origin: origins.Origin, file: bytes, shared: Path) -> None:
    for _ in range(3):
        assert publish(shared, model(origin.url, file)) == (0, "")
    assert origin.sent == len(file)
    assert blob(shared, file).read_bytes() == file
    assert names(shared) == ["tiny:1"]


def test_a_source_that_breaks_off_is_resumed_where_it_broke_off(origin: origins.Origin, file: bytes, shared: Path) -> None:
    origin.cut_after = len(file) // 4
    assert publish(shared, model(origin.url, file)) == (0, "")
    assert origin.sent == len(file)
    assert origin.requests == ["", *(f"bytes={len(file) // 4 * part}-" for part in range(1, len(origin.requests)))]


def test_a_source_without_ranges_is_fetched_again_from_its_start(origin: origins.Origin, file: bytes, shared: Path) -> None:
    half = shared / "blobs" / f".{blob(shared, file).name}.partial"
    half.parent.mkdir(parents=True)
    half.write_bytes(file[: len(file) // 2])
    origin.ranges = False
    assert publish(shared, model(origin.url, file)) == (0, "")
    assert origin.requests == [f"bytes={len(file) // 2}-"]
    assert blob(shared, file).read_bytes() == file


def test_a_server_that_fails_for_a_while_is_asked_again(origin: origins.Origin, file: bytes, shared: Path) -> None:
    origin.failures = 3
    assert publish(shared, model(origin.url, file)) == (0, "")
    assert names(shared) == ["tiny:1"]


def test_a_server_that_keeps_failing_is_named_and_may_be_tried_later(origin: origins.Origin, file: bytes, shared: Path) -> None:
    origin.failures = 99
    status, error = publish(shared, model(origin.url, file))
    assert (status, error.count("\n")) == (1, 1)
    assert f"error: models.tiny:1: {origin.url}: got status 500 after 0 bytes, want all of it; check the source" in error
    assert names(shared) == []
    origin.failures = 0
    assert publish(shared, model(origin.url, file)) == (0, "")


def test_a_source_that_is_not_there_is_refused_at_once(origin: origins.Origin, file: bytes, shared: Path) -> None:
    origin.failures, origin.failure_status = 99, 404
    found, error = publish(shared, model(origin.url, file))
    assert (found, len(origin.requests)) == (1, 1)
    assert "got status 404, want the content; correct the source" in error


def test_a_source_that_lies_about_its_content_is_never_served(origin: origins.Origin, file: bytes, shared: Path) -> None:
    origin.content = file[:-1] + bytes([file[-1] ^ 1])
    status, error = publish(shared, model(origin.url, file))
    assert (status, error.count("\n")) == (1, 1)
    assert f"got content {sha256(origin.content)}, want {sha256(file)}; do not use it" in error
    assert names(shared) == []
    assert list((shared / "blobs").iterdir()) == []
    assert store.manifests(shared) == []


def test_a_source_that_ends_early_is_never_served(origin: origins.Origin, file: bytes, shared: Path) -> None:
    """It says so itself: a shorter Content-Length, so that only the digest tells."""
    origin.content = file[: len(file) // 2]
    status, error = publish(shared, model(origin.url, file))
    assert status == 1
    assert "do not use it" in error
    assert names(shared) == []


@pytest.mark.parametrize("length", [True, False])
def test_a_source_that_does_not_end_is_stopped_at_the_declared_size(
    origin: origins.Origin, file: bytes, shared: Path, length: bool
) -> None:
    origin.content, origin.length = file * 8, length
    status, error = publish(shared, model(origin.url, file))
    assert status == 1
    assert f"want at most {len(file)}; correct the source or the model's size" in error
    assert list((shared / "blobs").iterdir()) == []


def test_what_an_earlier_run_left_is_not_trusted(origin: origins.Origin, file: bytes, shared: Path) -> None:
    half = shared / "blobs" / f".{blob(shared, file).name}.partial"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x" * 1000)
    assert publish(shared, model(origin.url, file)) == (0, "")
    assert origin.requests == ["bytes=1000-", ""]
    assert blob(shared, file).read_bytes() == file


def test_a_volume_without_room_is_named_and_left_as_it_was(origin: origins.Origin, file: bytes, shared: Path) -> None:
    status, error = publish(shared, model(origin.url, file), options=("--capacity=100000",))
    assert status == 1
    assert f"{shared}: got 100000 bytes free, want {len(file)} for {origin.url}; enlarge storage.shared.size" in error
    assert origin.sent <= 1 << 16 << 4


def test_a_file_system_that_is_full_is_named(origin: origins.Origin, file: bytes, shared: Path) -> None:
    """The limit of the process stands in for the disk: an error at the same call."""
    small = 100_000
    shared.mkdir()
    argv = ["prlimit", f"--fsize={small}", sys.executable, "-m", "model_sync", "publish", "/nowhere", str(shared)]
    environment = {"PATH": os.environ["PATH"], "MODEL_SYNC_MODELS": json.dumps({"fleet": 0, "models": [model(origin.url, file)]})}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "got File too large with " in done.stderr
    assert "want room for sha256-" in done.stderr
    assert list((shared / "blobs").iterdir()) == []
    assert names(shared) == []


def test_the_writer_keeps_to_its_rate(origin: origins.Origin, file: bytes, shared: Path) -> None:
    started = time.monotonic()
    assert publish(shared, model(origin.url, file), options=(f"--rate-limit={len(file)}",)) == (0, "")
    assert time.monotonic() - started >= 1


def test_two_writers_take_turns(origin: origins.Origin, file: bytes, shared: Path) -> None:
    origin.delay_s = 0.02
    writers = [writer(shared, model(origin.url, file)) for _ in range(3)]
    outputs = [each.communicate(timeout=60) for each in writers]
    assert [each.returncode for each in writers] == [0, 0, 0], outputs
    assert origin.sent == len(file), "the second found what the first had fetched"


def whole(path: Path, source: Path | None = None) -> None:
    """Everything that the catalog of a store names is there and is what it says, or already what that of its source says.

    A follower replaces a manifest and then the catalog: between the two, a model is whole and newer than the catalog.
    """
    found, newer = catalog.read(path), catalog.read(source) if source else None
    digests = {entry.name: entry.digest for entry in newer.models} if newer else {}
    for entry in found.models if found else ():
        content = (path / store.manifest_path(entry.name)).read_bytes()
        assert store.file_digest(content) in (entry.digest, digests.get(entry.name))
        for each in store.blobs(content, path):
            assert store.sha256(path / "blobs" / each.file_name) == each.digest
    for manifest in store.manifests(path):
        for each in store.blobs((path / manifest).read_bytes(), manifest):
            assert (path / "blobs" / each.file_name).stat().st_size == each.size


def test_a_writer_killed_at_any_point_leaves_a_store_that_the_next_one_finishes(origin: origins.Origin, file: bytes, shared: Path) -> None:
    origin.delay_s = 0.01
    wanted = [model(origin.url, file), model(origin.url, file, name="again:1", context_length=4096)]
    pauses = random.Random(6)  # noqa: S311
    killed = 0
    for _ in range(25):
        process = writer(shared, *wanted)
        try:
            process.communicate(timeout=pauses.uniform(0.05, 0.6))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        whole(shared)
    assert killed, "the writer was killed while it worked"
    assert publish(shared, *wanted) == (0, "")
    whole(shared)
    assert names(shared) == ["tiny:1", "again:1"]
    assert not list((shared / "blobs").glob(".*"))


def test_a_follower_killed_at_any_point_never_shows_half_a_model(origin: origins.Origin, file: bytes, shared: Path, tmp_path: Path) -> None:
    hot = tmp_path / "hot"
    pauses = random.Random(6)  # noqa: S311
    for round_ in range(12):
        publish(shared, model(origin.url, file, context_length=2048 + round_))
        argv = follow(shared, hot, tmp_path / "marker", "http://127.0.0.1:9")
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(pauses.uniform(0.05, 0.4))
        process.kill()
        process.wait()
        if hot.exists():
            whole(hot, shared)
    (tmp_path / "marker").unlink(missing_ok=True)
    process = subprocess.Popen(follow(shared, hot, tmp_path / "marker", "http://127.0.0.1:9"), cwd=ROOT, stdout=subprocess.DEVNULL)
    eventually((tmp_path / "marker").exists, bool)
    assert catalog.read(hot) == catalog.read(shared)
    process.terminate()
    assert process.wait(10) == 0
    whole(hot)


def follow(shared: Path, hot: Path, marker: Path, server: str, *options: str) -> list[str]:
    argv = [sys.executable, "-m", "model_sync", "follow", str(shared), str(hot), "--ordinal=0", f"--marker={marker}"]
    return [*argv, f"--server={server}", "--poll-s=0.1", "--retry-s=0.5", *options]


def content_of(path: Path) -> bytes:
    """Nothing while the follower hides the file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def eventually(read: Callable[[], Any], holds: Callable[[Any], bool], timeout_s: float = 30) -> Any:
    deadline = time.monotonic() + timeout_s
    while not holds(value := read()):
        assert time.monotonic() < deadline, value
        time.sleep(0.05)
    return value


def test_a_model_comes_from_a_real_registry(file: bytes, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(file)
    gguf.add("tiny:1", tmp_path / "m.gguf", tmp_path / "source")
    manifest = store.manifest_path("tiny:1")
    content = (tmp_path / "source" / manifest).read_bytes()
    with registries.serving(tmp_path / "registry") as address:
        origins.push(address, "team/tiny", "1", tmp_path / "source", manifest)
        source = f"registry+http://{address}/team/tiny:1"
        assert publish(shared, model(source, content, size=len(file))) == (0, "")
        assert blob(shared, file).read_bytes() == file
        assert names(shared) == ["tiny:1"]
        status, error = publish(shared, model(source, b"another manifest", size=len(file), name="lie:1"))
        assert status == 1
        assert f"got manifest {sha256(content)}, want " in error
        status, error = publish(shared, model(source.replace(":1", ":2"), content, size=len(file)))
        assert (status, "got status 404" in error) == (1, True)


def test_a_registry_that_is_down_for_a_while_is_asked_again(origin: origins.Origin, file: bytes, shared: Path) -> None:
    """A server that answers anything with one document: what comes is not the manifest, but it came."""
    origin.failures = 2
    source = f"registry+http://{origin.url.removeprefix('http://').partition('/')[0]}/team/tiny:1"
    status, error = publish(shared, model(source, b"", size=len(file)))
    assert (status, len(origin.requests)) == (1, 3)
    assert f"got manifest {sha256(file)}, want {sha256(b'')}; do not use it" in error
    origin.failures = 99
    status, error = publish(shared, model(source, b"", size=len(file)))
    assert status == 1
    assert "/v2/team/tiny/manifests/1: got status 500, want the document; check the source" in error


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Ollama; built here on a new machine."""
    return ollama.install(tmp_path_factory.mktemp("ollama"))


@contextmanager
def fleet_of_one(program: Path, shared: Path, tmp_path: Path, *options: str) -> Iterator[tuple[Any, Path]]:
    """A follower, and after its first pass a real Ollama that reads its store, as in the pod."""
    hot, marker = tmp_path / "hot", tmp_path / "marker"
    port = ollama.free_port()
    argv = follow(shared, hot, marker, f"http://127.0.0.1:{port}", "--keep-s=0", *options)
    with (tmp_path / "follow.log").open("wb") as log, subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log) as follower:
        try:
            # As the pod's startup probe has it: the marker of an earlier follower says nothing of this one.
            stat = Path(f"/proc/{follower.pid}/stat")
            eventually(lambda: marker.exists() and marker.read_text() == stat.read_text().rpartition(")")[2].split()[19], bool)
            with ollama.running(program, hot, tmp_path, port) as server:
                yield server, hot
        finally:
            follower.send_signal(signal.SIGTERM)
            assert follower.wait(10) == 0


def test_a_blob_that_rots_on_the_replicas_disk_is_not_served_after_a_restart(
    program: Path, origin: origins.Origin, file: bytes, shared: Path, tmp_path: Path
) -> None:
    assert publish(shared, model(origin.url, file)) == (0, "")
    with fleet_of_one(program, shared, tmp_path) as (server, hot):
        assert said(server, "tiny:1") == SCRIPT
    rotten = blob(hot, file)
    before = rotten.stat()
    # In the text of a token, so that the answer would tell.
    rotten.write_bytes(file.replace(b"Hello", b"Jello"))
    os.utime(rotten, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rotten.read_bytes() != file
    assert rotten.stat().st_size == before.st_size
    with ollama.running(program, hot, tmp_path) as server:
        assert said(server, "tiny:1").startswith("Jello"), "Ollama itself does not look"
    with fleet_of_one(program, shared, tmp_path) as (server, hot):
        assert said(server, "tiny:1") == SCRIPT
    assert "got content" in (tmp_path / "follow.log").read_text()
    assert rotten.read_bytes() == file


def said(server: Any, name: str) -> str:
    answer = httpx.post(f"{server.url}/api/generate", json={"model": name, "prompt": "?", "stream": False}, timeout=60, trust_env=False)
    return answer.json().get("response") or answer.text


def shown(server: Any) -> dict[str, str]:
    models = httpx.get(f"{server.url}/api/tags", timeout=10, trust_env=False).json()["models"]
    return {each["name"]: f"sha256:{each['digest']}" for each in models}


def loaded(server: Any) -> dict[str, int]:
    models = httpx.get(f"{server.url}/api/ps", timeout=10, trust_env=False).json()["models"]
    return {each["name"]: each["context_length"] for each in models}


def test_b1_a_manifest_that_is_damaged_while_a_server_runs_heals(
    program: Path, origin: origins.Origin, file: bytes, shared: Path, tmp_path: Path
) -> None:
    """One life of the follower, which never ends by it, and a server that answers throughout; also when the follower starts anew."""
    other = tiny_gguf.make(tmp_path / "other.gguf", "Another one speaks.").read_bytes()
    (tmp_path / "other.gguf").write_bytes(other)
    second = model(f"file://{tmp_path / 'other.gguf'}", other, name="other:1")
    assert publish(shared, model(origin.url, file), second) == (0, "")
    for _ in range(2):
        with fleet_of_one(program, shared, tmp_path, "--check-s=1") as (server, hot):
            path = hot / store.manifest_path("tiny:1")
            whole_manifest = path.read_bytes()
            for damaged in (whole_manifest[:-1], b"", b"\xff" + whole_manifest[1:], whole_manifest.replace(b'"size":', b'"size":1', 1)):
                path.write_bytes(damaged)
                assert said(server, "other:1") == "Another one speaks."
                eventually(partial(content_of, path), lambda content, want=whole_manifest: content == want, 10)
                assert said(server, "tiny:1") == SCRIPT
            whole(hot)
        # And before it starts: this was a restart loop.
        path.write_bytes(b"{")
    assert "Traceback" not in (tmp_path / "follow.log").read_text()


def test_models_come_and_go_while_a_real_ollama_serves(
    origin: origins.Origin, file: bytes, program: Path, shared: Path, tmp_path: Path
) -> None:
    first = model(origin.url, file)
    assert publish(shared, first) == (0, "")
    other = tiny_gguf.make(tmp_path / "other.gguf", "Another one speaks.").read_bytes()
    with origins.serving(other) as second_origin, fleet_of_one(program, shared, tmp_path) as (server, hot):
        assert said(server, "tiny:1") == SCRIPT
        assert loaded(server) == {"tiny:1": 2048}, "its own context"

        assert publish(shared, first, model(second_origin.url, other, name="other:1", context_length=1024)) == (0, "")
        eventually(lambda: shown(server).keys(), lambda names: names == {"tiny:1", "other:1"})
        assert shown(server) == {entry.name: entry.digest for entry in (catalog.read(shared) or catalog.Catalog()).models}
        assert said(server, "other:1") == "Another one speaks."
        assert loaded(server) == {"tiny:1": 2048, "other:1": 1024}

        assert publish(shared, first) == (0, "")
        eventually(lambda: shown(server).keys(), lambda names: names == {"tiny:1"})
        eventually(lambda: loaded(server), lambda found: found == {"tiny:1": 2048})
        eventually(blob(hot, other).exists, lambda there: not there)
        assert said(server, "tiny:1") == SCRIPT

        assert publish(shared, model(origin.url, file, context_length=4096)) == (0, "")
        eventually(lambda: loaded(server), lambda found: not found)
        assert said(server, "tiny:1") == SCRIPT
        assert loaded(server) == {"tiny:1": 4096}, "the new version, and the old one is not loaded beside it"
