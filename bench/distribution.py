"""What N replicas of one model cost: bytes and seconds, ours against `ollama pull` in each replica. Writes bench/results/distribution.json.

Both ways take the same model from the same registry, in turns, on loopback; a hop in front of the registry counts bytes and adds the
`Location` header that Ollama's pull asks for. Once nothing slows the loopback down, once the hop gives all its clients together
UPLINK_BYTES a second, as a site's link to its registry would; the copy from the shared store is never slowed down.

Of each replica: seconds until its store has the model, and until its first answer. The second has the engine's start in it, which both ways
share: four engines on two cores wait for each other for seconds, so each gets one thread.
    python -m bench.distribution
"""

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from bench.conditions import conditions, keep
from images.embedded import default_model
from model_sync import gguf, store
from model_sync.fetch import Pace
from tests.service import ollama, origins, registries
from tests.service.processes import Service, free_port

FLEETS = (1, 2, 4)
ROUNDS = 3
UPLINK_BYTES = 25 * 10**6
"""A second: 200 Mbit/s."""
REPOSITORY, TAG = "team/model", "1"
ROOT = Path(__file__).resolve().parents[1]


class Hop(ThreadingHTTPServer):
    """In front of the registry."""

    daemon_threads = True

    def __init__(self, upstream: str, bytes_per_s: int) -> None:
        super().__init__(("127.0.0.1", 0), _HopHandler)
        self.upstream = upstream
        self.sent = 0
        self.lock = threading.Lock()
        self.pace = Pace(bytes_per_s)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _HopHandler(BaseHTTPRequestHandler):
    server: Hop  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        upstream.request(self.command, self.path, headers={key: value for key, value in self.headers.items() if key.lower() != "host"})
        response = upstream.getresponse()
        self.send_response_only(response.status)
        for key, value in response.getheaders():
            if key.lower() not in ("connection", "transfer-encoding"):
                self.send_header(key, value)
        if "/blobs/" in self.path:
            self.send_header("Location", self.path)
        self.end_headers()
        try:
            while block := response.read(1 << 18):
                self.wfile.write(block)
                # Under the lock, so that the pace is that of all clients together.
                with self.server.lock:
                    self.server.sent += len(block)
                    self.server.pace.passed(len(block))
        except OSError:
            self.close_connection = True
        upstream.close()

    do_HEAD = do_GET  # noqa: N815 (the name that the base class looks for)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def hop(upstream: str, bytes_per_s: int) -> Iterator[Hop]:
    server = Hop(upstream, bytes_per_s)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(server: Service, model: str) -> None:
    body = {"model": model, "prompt": "Hello", "stream": False, "options": {"num_predict": 1, "num_thread": 1}}
    httpx.post(f"{server.url}/api/generate", json=body, timeout=300, trust_env=False).raise_for_status()


def size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


@dataclass(frozen=True)
class Seconds:
    """From the beginning of one replica."""

    whole: float
    """Until its store has the model."""
    answered: float


Replica = Callable[[ExitStack, int], Seconds]


def in_turn(replica: Replica, count: int) -> list[Seconds]:
    """The first replica alone, from nothing; then all others at once, as a fleet scales out."""
    with ExitStack() as stack, ThreadPoolExecutor(max(count - 1, 1)) as pool:
        return [replica(stack, 0), *pool.map(lambda index: replica(stack, index), range(1, count))]


def pulled(work: Path, program: Path, source: Hop, count: int) -> dict[str, Any]:
    """Every replica pulls for itself."""
    name = f"{source.address}/{REPOSITORY}:{TAG}"

    def replica(stack: ExitStack, index: int) -> Seconds:
        started = time.monotonic()
        home = work / f"replica-{index}"
        (home / "models").mkdir(parents=True)
        server = stack.enter_context(ollama.running(program, home / "models", home))
        pull = httpx.post(f"{server.url}/api/pull", json={"model": name, "insecure": True, "stream": False}, timeout=600, trust_env=False)
        if pull.json() != {"status": "success"}:
            raise RuntimeError(pull.text)
        whole = time.monotonic() - started
        answer(server, name)
        return Seconds(whole, time.monotonic() - started)

    seconds = in_turn(replica, count)
    disk = [size(work / f"replica-{index}" / "models") for index in range(count)]
    return {
        "seconds": seconds,
        "origin_bytes": source.sent,
        "network_bytes": source.sent,
        "disk_bytes": sum(disk),
        "replica_bytes": disk[-1],
    }


def delivered(work: Path, program: Path, source: Hop, count: int, declared: Mapping[str, Any]) -> dict[str, Any]:
    """One writer, and followers that copy from the shared store."""
    shared = work / "shared"
    shared.mkdir(parents=True)
    sync = [sys.executable, "-m", "model_sync"]

    def replica(stack: ExitStack, index: int) -> Seconds:
        started = time.monotonic()
        if index == 0:
            models = json.dumps({"fleet": 0, "models": [{**declared, "source": f"registry+http://{source.address}/{REPOSITORY}:{TAG}"}]})
            environment = os.environ | {"MODEL_SYNC_MODELS": models}
            subprocess.run([*sync, "publish", "/nowhere", str(shared)], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        home, port = work / f"replica-{index}", free_port()
        home.mkdir()
        marker = home / "marker"
        argv = [*sync, "follow", str(shared), str(home / "models"), f"--ordinal={index}", f"--marker={marker}"]
        follower = subprocess.Popen([*argv, f"--server=http://127.0.0.1:{port}"], cwd=ROOT, stdout=subprocess.DEVNULL)
        stack.callback(follower.wait)
        stack.callback(follower.terminate)
        while not marker.exists():
            if follower.poll() is not None:
                raise RuntimeError("the follower ended")
            time.sleep(0.01)
        whole = time.monotonic() - started
        server = stack.enter_context(ollama.running(program, home / "models", home, port))
        answer(server, str(declared["name"]))
        return Seconds(whole, time.monotonic() - started)

    seconds = in_turn(replica, count)
    disk = [size(work / f"replica-{index}" / "models") for index in range(count)]
    return {
        "seconds": seconds,
        "origin_bytes": source.sent,
        # Where the shared store is a network file system, each replica reads it over the network once.
        "network_bytes": source.sent + sum(disk),
        "disk_bytes": sum(disk) + size(shared),
        "replica_bytes": disk[-1],
    }


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several runs: the seconds of the first replica and of the slowest later one by their median, bytes as they are."""
    seconds: dict[str, float] = {}
    for what in ("whole", "answered"):
        each = [[getattr(one, what) for one in run["seconds"]] for run in runs]
        seconds[f"first_replica_{what}_s"] = round(statistics.median(one[0] for one in each), 2)
        if len(each[0]) > 1:
            seconds[f"slowest_later_replica_{what}_s"] = round(statistics.median(max(one[1:]) for one in each), 2)
    bytes_ = {key: max(run[key] for run in runs) for key in ("origin_bytes", "network_bytes", "disk_bytes", "replica_bytes")}
    return {**seconds, **bytes_}


def measure(work: Path) -> dict[str, Any]:
    (name, path), *_ = default_model().items()
    gguf.add(name, path, work / "source")
    manifest = store.manifest_path(name)
    content = (work / "source" / manifest).read_bytes()
    declared = {
        **{"name": name, "digest": store.file_digest(content), "size": path.stat().st_size, "context_length": 2048},
        **{"quantization": "", "replicas": 0, "keep_alive": "-1"},
    }
    program = ollama.install(work / "ollama")
    found: dict[str, Any] = {"model_bytes": sum(blob.size for blob in store.blobs(content, manifest))}
    with registries.serving(work / "registry") as address:
        origins.push(address, REPOSITORY, TAG, work / "source", manifest)
        for link, bytes_per_s in (("loopback", 0), ("uplink", UPLINK_BYTES)):
            found[link] = {"bytes_per_s": bytes_per_s or None}
            for count in FLEETS:
                ours: list[dict[str, Any]] = []
                theirs: list[dict[str, Any]] = []
                for _ in range(ROUNDS):
                    with hop(address, bytes_per_s) as source:
                        ours.append(delivered(work / "ours", program, source, count, declared))
                    with hop(address, bytes_per_s) as source:
                        theirs.append(pulled(work / "theirs", program, source, count))
                    for way in ("ours", "theirs"):
                        shutil.rmtree(work / way)
                    said = [[f"{each.whole:.2f}/{each.answered:.2f}" for each in way[-1]["seconds"]] for way in (ours, theirs)]
                    print(f"{link}, {count} replicas: {said[0]} s, by pull {said[1]} s", file=sys.stderr, flush=True)
                found[link][f"replicas_{count}"] = {"one_delivery": median(ours), "pull_per_replica": median(theirs)}
    return found


def main() -> int:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        figures = measure(Path(work))
    report = conditions("python -m bench.distribution") | {
        "rounds": ROUNDS,
        "load_average_before": round(load, 1),
        "figures": figures,
    }
    keep("distribution", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
