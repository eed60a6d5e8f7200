"""The writer at sources that nobody should trust: what each costs is bounded in requests, bytes, time and memory, and the others are published."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_sync import catalog, fetch, gguf, store
from model_sync.fetch import Pace, Target
from model_sync.source import Source, SourceError
from tests import tiny_gguf
from tests.service import origins
from tests.service.processes import ROOT
from tests.service.test_model_sync import model, sha256

SILENCE_S = 2
"""What these tests let a source be silent; a minute in a fleet."""
MEMORY = 128 << 20
"""The limit of the writer's pod (components/models.py)."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf.make(tmp_path_factory.mktemp("gguf") / "m.gguf", "Hello from the tiny model.").read_bytes()


@pytest.fixture
def origin(file: bytes) -> Iterator[origins.Origin]:
    with origins.serving(file) as found:
        yield found


@dataclass
class Run:
    status: int
    said: str
    seconds: float
    names: list[str]
    problems: dict[str, str]


@pytest.fixture
def publish(file: bytes, tmp_path: Path) -> Callable[..., Run]:
    """Publish the given models and a good one, `good:1`, after them; the writer has the memory of its pod and no more."""
    (tmp_path / "good.gguf").write_bytes(file)
    shared = tmp_path / "shared"
    shared.mkdir()

    def run(*models: dict[str, Any]) -> Run:
        declared = [*models, model(f"file://{tmp_path / 'good.gguf'}", file, name="good:1")]
        environment = {"PATH": os.environ["PATH"], "MODEL_SYNC_MODELS": json.dumps({"fleet": 0, "models": declared})}
        argv = [sys.executable, "-m", "model_sync", "publish", "/nowhere", str(shared), "--attempts=3", f"--silence-s={SILENCE_S}"]
        started = time.monotonic()
        limit = f"--data={MEMORY}:{MEMORY}"
        done = subprocess.run(["prlimit", limit, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        found = catalog.read(shared)
        assert found is not None, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        names = [entry.name for entry in found.models]
        return Run(done.returncode, done.stderr, time.monotonic() - started, names, dict(found.problems))

    return run


def refused(run: Run, says: str, name: str = "tiny:1") -> None:
    """One line names the model, the catalog has it too, and the other model is served."""
    assert run.status == 1
    assert run.said.count("\n") == 1, run.said
    assert run.said.startswith(f"error: models.{name}"), run.said
    assert says in run.said
    assert run.problems == {name: run.said.removeprefix("error: ").strip()}
    assert run.names == ["good:1"]


def test_b9_416_to_everything_is_one_refusal(origin: origins.Origin, file: bytes, publish: Callable[..., Run]) -> None:
    origin.no_range = True
    refused(publish(model(origin.url, file)), "got status 416, want the content; correct the source")
    assert origin.requests == [""]


def test_b9_416_to_a_range_starts_again_at_the_first_byte(
    origin: origins.Origin, file: bytes, publish: Callable[..., Run], tmp_path: Path
) -> None:
    """What an earlier run left is longer than all that the source has."""
    half = tmp_path / "shared" / "blobs" / f".{sha256(file).replace(':', '-')}.partial"
    half.parent.mkdir()
    half.write_bytes(b"x" * len(file))
    found = publish(model(origin.url, file))
    assert (found.status, found.names) == (0, ["tiny:1", "good:1"]), found.said
    assert origin.requests == [f"bytes={len(file)}-", ""]


def test_b9_a_part_that_does_not_say_which_is_not_taken(origin: origins.Origin, file: bytes, publish: Callable[..., Run]) -> None:
    origin.bare_parts = True
    refused(publish(model(origin.url, file)), "got a part without its place, want the whole content")
    assert origin.requests == ["", ""]


def test_b9_one_byte_a_connection_is_no_progress(origin: origins.Origin, file: bytes, publish: Callable[..., Run]) -> None:
    origin.cut_after = 1
    refused(publish(model(origin.url, file)), "got the end of the content after 3 bytes")
    assert len(origin.requests) == 3


def test_b9_a_source_that_trickles_is_given_up(origin: origins.Origin, file: bytes, publish: Callable[..., Run]) -> None:
    origin.drip_bytes, origin.delay_s = 1, 0.05
    found = publish(model(origin.url, file))
    refused(found, " bytes in 2 s after ")
    assert len(origin.requests) == 3
    assert found.seconds < 3 * SILENCE_S + 10


def test_a_registry_that_trickles_its_manifest_is_given_up(origin: origins.Origin, file: bytes, publish: Callable[..., Run]) -> None:
    origin.drip_bytes, origin.delay_s = 1, 0.05
    source = f"registry+http://{origin.url.split('/')[2]}/team/tiny:1"
    refused(publish(model(source, file)), "/v2/team/tiny/manifests/1: got ")
    assert len(origin.requests) == 3


def test_a_head_that_does_not_end_is_given_up(origin: origins.Origin, file: bytes, publish: Callable[..., Run]) -> None:
    origin.slow_head_s = 0.2
    found = publish(model(origin.url, file))
    refused(found, "check the source, the next run goes on from there")
    assert found.seconds < 3 * SILENCE_S + 10


def test_a_handshake_that_does_not_end_is_given_up(file: bytes, publish: Callable[..., Run]) -> None:
    with babbling() as port:
        found = publish(model(f"https://127.0.0.1:{port}/m.gguf", file))
    refused(found, "check the source, the next run goes on from there")
    assert found.seconds < 3 * SILENCE_S + 10


@contextmanager
def babbling() -> Iterator[int]:
    """A TLS server that sends its first record, of 16 KiB, a byte at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk(client: socket.socket) -> None:
            with client:
                try:
                    client.sendall(b"\x16\x03\x03\x40\x00")
                    while True:
                        client.sendall(b"\x02")
                        time.sleep(0.2)
                except OSError:
                    pass

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_redirect_with_a_body_that_does_not_end_costs_nothing(origin: origins.Origin, file: bytes, publish: Callable[..., Run]) -> None:
    """To itself, for ever: ten are followed, and none of the bodies is read."""
    origin.moved_to = origin.url
    refused(publish(model(origin.url, file)), "got status 302, want the content; correct the source")
    assert len(origin.requests) <= 11
    assert origin.sent < 64 << 20, "what the kernel's buffers took"


@pytest.mark.parametrize(
    "target", ["http://[::1/x", "http://127.0.0.1:99999/x", "file:///etc/hostname", "ftp://127.0.0.1/x", "http://\u00a0/x"]
)
def test_a_redirect_to_nowhere_is_refused(origin: origins.Origin, file: bytes, publish: Callable[..., Run], target: str) -> None:
    origin.moved_to = target.encode("utf-8").decode("latin-1")
    found = publish(model(origin.url, file))
    refused(found, "")
    assert "; " in found.said


def test_s25_a_storage_host_that_refuses_is_asked_again_by_another_address(
    origin: origins.Origin, publish: Callable[..., Run], tmp_path: Path
) -> None:
    """As a hub does: it redirects to storage with a signed address, whose 403 may mean that the address is too old, or the storage busy."""
    # Not the content of `good:1`, which is there after the first run.
    file = tiny_gguf.make(tmp_path / "other.gguf", "Another one.").read_bytes()
    half = len(file) // 2
    with origins.serving(file) as storage:
        origin.moved_to = f"{storage.url}?X-Signature=a-secret-of-an-hour"
        storage.cut_after, storage.refusals_after_cut, storage.failure_status = half, 1, 403
        found = publish(model(origin.url, file))
    assert (found.status, found.names) == (0, ["tiny:1", "good:1"]), found.said
    assert storage.requests == ["", f"bytes={half}-", f"bytes={half}-"]
    assert len(origin.requests) == 3, "it is asked for another address each time"


def test_s25_a_storage_host_that_always_refuses_is_given_up_by_name(
    origin: origins.Origin, publish: Callable[..., Run], tmp_path: Path
) -> None:
    file = tiny_gguf.make(tmp_path / "other.gguf", "Another one.").read_bytes()
    with origins.serving(file) as storage:
        origin.moved_to = f"{storage.url}?X-Signature=a-secret-of-an-hour"
        storage.failures, storage.failure_status = 10**6, 403
        found = publish(model(origin.url, file))
        hosts = [each.url.split("/")[2] for each in (storage, origin)]
        refused(found, f"got 403 from {hosts[0]}, where {hosts[1]} redirects to after 0 bytes, want ")
        assert "a-secret" not in found.said
        assert (len(storage.requests), len(origin.requests)) == (3, 3), "as often as any source that fails"
        # Its own 403 is no matter of an address, and final.
        refused(publish(model(storage.url, file)), f"got 403 from {hosts[0]}, want leave to read; ")
        assert len(storage.requests) == 4


def test_a_length_that_is_none_is_not_believed(origin: origins.Origin, file: bytes, publish: Callable[..., Run]) -> None:
    origin.length, origin.headers = False, {"Content-Range": f"bytes 0-1/{'9' * 5000}", "X-Length": "9" * 5000}
    found = publish(model(origin.url, file))
    assert (found.status, found.names) == (0, ["tiny:1", "good:1"]), found.said


def test_a_server_that_asks_for_time_gets_it(origin: origins.Origin, file: bytes, publish: Callable[..., Run]) -> None:
    origin.failures, origin.failure_status, origin.headers = 1, 429, {"Retry-After": "3"}
    found = publish(model(origin.url, file))
    assert (found.status, found.names) == (0, ["tiny:1", "good:1"])
    assert found.seconds >= 3


NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"null",
        NESTED,
        b'{"config": {"digest": "sha256:' + b"0" * 64 + b'", "size": 1}, "layers": [{"digest": "sha256:' + b"1" * 64 + b'", "size": 1}]}',
        b'{"config": {"digest": "sha256:' + b"0" * 64 + b'", "size": 1e999}, "layers": []}',
        b'{"config": {"digest": "../../etc/passwd", "size": 1}, "layers": []}',
        b'{"config": {"digest": "sha256:' + b"0" * 64 + b'", "size": -1}, "layers": []}',
        b'{"config": 5, "layers": 7}',
        b"\xff\xfe",
    ],
    ids=["empty", "list", "null", "nested", "no media type", "infinite", "path", "negative", "numbers", "no text"],
)
def test_b9_a_manifest_that_is_none_harms_its_model_alone(origin: origins.Origin, publish: Callable[..., Run], document: bytes) -> None:
    origin.content = document
    source = f"registry+http://{origin.url.split('/')[2]}/team/tiny:1"
    refused(publish(model(source, document, size=2**21)), "got no manifest (")


def test_b9_parameters_that_are_no_object_harm_their_model_alone(file: bytes, publish: Callable[..., Run], tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    (tmp_path / "m.gguf").write_bytes(file)
    gguf.add("tiny:1", tmp_path / "m.gguf", seed)
    manifest = json.loads((seed / store.manifest_path("tiny:1")).read_text())
    blob = store.write_blob(seed, b"[1]")
    manifest["layers"].append({"mediaType": store.PARAMS_LAYER, "digest": blob.digest, "size": blob.size})
    with serving_registry(json.dumps(manifest).encode(), seed) as (source, content):
        refused(publish(model(source, content, size=2**21)), "got a layer of parameters that is no JSON object")


@contextmanager
def serving_registry(manifest: bytes, seed: Path) -> Iterator[tuple[str, bytes]]:
    """A registry of one manifest and of a store's blobs."""
    with origins.serving(manifest) as origin:
        origin.paths = {f"/v2/team/tiny/blobs/{path.name.replace('-', ':')}": path.read_bytes() for path in (seed / "blobs").iterdir()}
        yield f"registry+http://{origin.url.split('/')[2]}/team/tiny:1", manifest


def test_b9_hashing_is_linear_in_the_size_of_the_model(origin: origins.Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that breaks off again and again: every byte is hashed once, and twice where an earlier run left it."""
    origin.content = os.urandom(4 << 20)
    origin.cut_after = 128 << 10
    hashed = 0
    passed = fetch._Partial.passed

    def counting(partial: fetch._Partial, block: bytes) -> None:
        nonlocal hashed
        hashed += len(block)
        passed(partial, block)

    monkeypatch.setattr(fetch._Partial, "passed", counting)
    monkeypatch.setattr("model_sync.source._BACKOFF_S", 0.0)
    path = tmp_path / "blobs" / "m"
    path.parent.mkdir()
    target = Target(path, sha256(origin.content), None, len(origin.content), lambda: 1 << 40)
    target.partial.write_bytes(origin.content[: 256 << 10])
    fetch.fetch(Source(origin.url), target, Pace(0), attempts=4)
    assert path.read_bytes() == origin.content
    assert hashed == len(origin.content) == origin.sent + (256 << 10)
    assert len(origin.requests) == origin.sent // origin.cut_after


def test_a_source_without_ranges_that_breaks_off_ever_later_is_given_up(
    origin: origins.Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection brings more than the last, all from the first byte: progress, and without a bound the square of the size."""
    origin.content, origin.ranges, origin.cut_after = os.urandom(32 << 20), False, 1 << 17
    monkeypatch.setattr("model_sync.source._BACKOFF_S", 0.0)

    def later() -> int:
        origin.cut_after = (len(origin.requests) + 1) << 17
        return 1 << 40

    path = tmp_path / "blobs" / "m"
    path.parent.mkdir()
    with pytest.raises(SourceError, match="got the end of the content"):
        fetch.fetch(Source(origin.url), Target(path, sha256(origin.content), None, len(origin.content), later), Pace(0), attempts=4)
    assert len(origin.requests) <= 6
