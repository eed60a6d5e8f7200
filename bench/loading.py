"""How long an engine takes from nothing to its first answer, in steps, and how fast it reads weights. Writes bench/results/loading.json.

Each engine comes twice to one node. For its first replica nothing is there, and what it reads of the shared store is cold; the second one
finds the image, and what the first left in memory. The steps:
    image    containerd pulls and unpacks it, from a registry on loopback that has its layers in gzip: our own images; for vLLM one that
             has its environment, with the CUDA build of PyTorch and with byte code, as ours has
    copy     its model from the shared store into its own, hashed on the way
    load     its process, from its start until it says that the model is loaded
    warm_up  from then until its first token is there
No network is in it: a registry and a store that are far away make the first replica slower yet. The model is that of the dev
stack, of 0.1 GB, with which the start of programs is most of it; llama.cpp comes once more with made-up weights of the size that nodes
have (`llama.cpp, large`).

Reading is measured with the same made-up weights, cold, as the time that they take beyond a model of a few kilobytes. What the disk can do
is the same file, read around the page cache (O_DIRECT). A process whose reads did not reach the disk has no figure.

For the super-user, who alone may mount: ten minutes and 25 GB of disk, beside nothing else; `small` leaves vLLM out, takes a minute,
and writes nothing. What a run found before it was ended is in bench/results/loading.partial.json:
    python -m bench.loading [small]
"""

import asyncio
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

from bench import load
from bench.conditions import beside, keep, keep_so_far
from bench.containerd import Node, running_node
from bench.engines import MODEL, Running, bare_llama_cpp, bare_vllm, failure, of_trees, ollamas
from bench.gateway import percentile
from bench.load import Server
from bench.processes import NotReady, all_ended, descendants, end_with_us
from devcluster import toolchain
from devcluster.oci import Image, Layer, RuntimeConfig, assemble
from images import embedded
from model_server.store import find_tree
from model_sync import catalog, gguf, store
from model_sync.catalog import Catalog, Entry
from tests import tiny_gguf
from tests.service import ollama
from tests.service.processes import ROOT

AIM_SOONER, AIM_OF_THE_DISK = 3, 0.9
ROUNDS = 3
LAYERS, WIDTH = {"full": 30, "small": 6}, 16384
"""Of made-up weights: 1 GB, and 0.2 GB."""
_STEP_S = 1800
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Case:
    """An engine, what its image is made of, and how it starts on a model store of its own."""

    image: str
    """In the node's registry."""
    source: Path
    """A model store."""
    start: Callable[[Path, Path], Any]
    """With its own store and a directory for its log; a context manager of Running, which begins when the model is loaded."""


def steps(case: Case, node: Node, work: Path, *, first: bool) -> dict[str, float]:
    """Seconds of each step of one replica."""
    work.mkdir()
    began = time.monotonic()
    seconds: dict[str, float] = {}

    def passed(step: str) -> None:
        nonlocal began
        seconds[step], began = round(time.monotonic() - began, 2), time.monotonic()

    if first:
        node.forget()
        cold(path for directory in (node.storage, case.source) for path in directory.rglob("*") if path.is_file())
        began = time.monotonic()
    node.have(case.image)
    passed("image")
    argv = [sys.executable, "-m", "model_sync", "copy", str(case.source), str(work / "store"), MODEL]
    subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=_STEP_S)
    passed("copy")
    with all_ended(), case.start(work / "store", work) as running:
        passed("load")
        answer(running)
        passed("warm_up")
    return seconds | {"first_answer": round(sum(seconds.values()), 2)}


def answer(running: Running) -> None:
    server = Server(running.url, patience_s=_STEP_S)
    tally = asyncio.run(load.repeated(server, server.request("Hello", stream=True, model=running.model, max_tokens=1), 1, 1))
    if not tally.answered:
        raise NotReady(f"{running.url}: got no first answer in {_STEP_S} s, want one; see the engine's log")


def packed(argv: Sequence[str | Path], archive: Path) -> Layer:
    """What a program writes, in gzip; the digest is that of what it wrote."""
    digest, size = hashlib.sha256(), 0
    with (
        archive.open("wb") as file,
        subprocess.Popen(argv, stdout=subprocess.PIPE) as writer,
        subprocess.Popen(["gzip", "-1"], stdin=subprocess.PIPE, stdout=file) as zipper,
    ):
        assert writer.stdout is not None and zipper.stdin is not None  # noqa: S101 (pipes were asked for)
        while block := writer.stdout.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            zipper.stdin.write(block)
        zipper.stdin.close()
    if writer.returncode or zipper.returncode:
        raise OSError(f"{archive}: got statuses {writer.returncode} and {zipper.returncode}, want an archive; is the disk full?")
    return Layer(digest=f"sha256:{digest.hexdigest()}", size=size, path=archive)


def cold(paths: Iterable[Path]) -> None:
    """None of these files is in the page cache any more."""
    for path in paths:
        with path.open("rb") as file:
            # What is not on the disk yet stays in the cache.
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def listed(source: Path) -> Path:
    """A store with MODEL, as the writer leaves it."""
    content = (source / store.manifest_path(MODEL)).read_bytes()
    size = sum(blob.size for blob in store.blobs(content, source))
    catalog.write(source, Catalog(0, (Entry(MODEL, store.file_digest(content), size, 2048, 0, "-1"),)))
    return source


def weights_of(own: Path) -> Path:
    """The largest file of a store."""
    return max((own / "blobs").iterdir(), key=lambda path: path.stat().st_size)


@contextmanager
def loaded_ollama(program: Path, own: Path, work: Path) -> Iterator[Running]:
    with ollamas(own, work, program) as running:
        # Asked for nothing, it loads the model and says when it has.
        httpx.post(f"{running.url}/api/generate", json={"model": MODEL}, timeout=_STEP_S, trust_env=False).raise_for_status()
        yield running


def llama_cpp(own: Path, work: Path) -> Any:
    return bare_llama_cpp(weights_of(own), work)


def of_packed(node: Node, work: Path, large: Path) -> dict[str, Case]:
    """The packed model by each engine that runs it, and the large one by llama.cpp."""
    [weights] = embedded.default_model().values()
    sources = {name: work / name for name in ("small-store", "large-store")}
    for store_of, path in zip(sources.values(), (weights, large), strict=True):
        gguf.add(MODEL, path, store_of, link=True)
    small, big = map(listed, sources.values())

    def published(image: Image) -> str:
        archives = {layer.digest: work / f"{layer.digest.replace(':', '-')}.tar.gz" for layer in image.layers}
        for layer in image.layers:
            # Images share their base.
            if not (archive := archives[layer.digest]).exists():
                packed(["cat", layer.path], archive)
        return node.publish(image, archives)

    server, theirs = map(published, (embedded.service("model-server"), embedded.ollama()))
    return {
        "llama.cpp": Case(server, small, llama_cpp),
        "llama.cpp, large": Case(server, big, llama_cpp),
        "ollama": Case(theirs, small, partial(loaded_ollama, ollama.install(work / "program"))),
    }


def of_vllm(node: Node, work: Path) -> tuple[Case, dict[str, str]]:
    """The unpacked model, and the versions of its packages."""
    _, versions = of_trees(work)
    # As our image is built.
    compiles = [work / "python" / "bin" / "python", "-m", "compileall", "-qq", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*compiles, work / "python" / "lib"], stdout=subprocess.DEVNULL, timeout=_STEP_S)
    layer = packed(["tar", "-c", "-C", work, "python"], work / "vllm.tar.gz")
    shutil.rmtree(work / "python")
    image = node.publish(assemble("vllm", [layer], RuntimeConfig()), {layer.digest: layer.path})
    layer.path.unlink()

    @contextmanager
    def vllm(own: Path, directory: Path) -> Iterator[Running]:
        with node.mounted(image, directory / "image") as root:
            weights = find_tree(own, MODEL, directory / "tree")[0]
            # As where a model server has one GPU. On CPUs vLLM has a worker beside its engine, another process that imports all of it.
            one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
            with bare_vllm(root / "python" / "bin" / "python", weights, directory, **one_process) as running:
                yield running

    return Case(image, listed(work / "trees"), vllm), versions


def starts(case: Case, node: Node, name: str, work: Path, rounds: int) -> dict[str, Any]:
    """Of the first and the second replica; of each step the median of all rounds counts."""
    found: tuple[list[dict[str, float]], list[dict[str, float]]] = [], []
    for _ in range(rounds):
        try:
            for number, each in enumerate(found):
                each.append(steps(case, node, work / f"{name}-{number}", first=number == 0))
        except (Exception, NotReady) as error:
            return failure(error)
        finally:
            for number in range(2):
                shutil.rmtree(work / f"{name}-{number}", ignore_errors=True)
    first, second = ({step: percentile([one[step] for one in each], 0.5) for step in each[0]} for each in found)
    sooner = first["first_answer"] / second["first_answer"]
    return {"rounds": rounds, "first": first, "second": second, "second_sooner": round(sooner, 1), "aim_sooner": AIM_SOONER}


def loaded_s(weights: Path, work: Path) -> tuple[float, int]:
    """Until llama.cpp has loaded cold weights, and the bytes that it read from the disk."""
    cold([weights])
    began = time.monotonic()
    with all_ended(), bare_llama_cpp(weights, work) as running:
        took_s = time.monotonic() - began
        read = sum(map(_read_bytes, descendants(running.pid)))
    return took_s, read


def _read_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def direct_s(path: Path) -> float:
    """To read a file around the page cache."""
    buffer, left = mmap.mmap(-1, _BLOCK_BYTES), path.stat().st_size
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    began = time.monotonic()
    try:
        while left > 0:
            left -= os.readv(handle, [buffer])
    finally:
        os.close(handle)
    return time.monotonic() - began


def reading(work: Path, large: Path) -> dict[str, Any]:
    """Of made-up weights: megabytes a second of llama.cpp's loading and of the disk."""
    least = tiny_gguf.make(work / "least.gguf", "Hello.")
    size = large.stat().st_size
    seconds: dict[str, list[float]] = {"disk": [], "load": [], "least": []}
    for _ in range(ROUNDS):
        seconds["disk"].append(direct_s(large))
        for name, weights in (("load", large), ("least", least)):
            took_s, read = loaded_s(weights, work)
            seconds[name].append(took_s)
            # The head, and what the kernel read ahead of it, was read by this process.
            if weights is large and read < 0.9 * size:
                raise NotReady(f"{large}: got {read} bytes read from the disk, want {size}; the file was in memory, so nothing is measured")
    middle = {name: percentile(found, 0.5) for name, found in seconds.items()}
    disk, loading = size / middle["disk"] / 1e6, size / (middle["load"] - middle["least"]) / 1e6
    rates = {"disk_mb_a_second": round(disk), "loading_mb_a_second": round(loading), "of_the_disk": round(loading / disk, 2)}
    return {"bytes": size, **{f"{name}_s": round(found, 3) for name, found in middle.items()}, **rates, "aim_of_the_disk": AIM_OF_THE_DISK}


def main(arguments: Sequence[str]) -> int:
    small = list(arguments) == ["small"]
    end_with_us()
    load_before = os.getloadavg()[0]
    with all_ended(), tempfile.TemporaryDirectory() as directory, running_node(Path(directory) / "node") as node:
        work = Path(directory)
        tell = (lambda _: None) if small else partial(keep_so_far, "loading")
        large = tiny_gguf.make(work / "large.gguf", "Hello.", layers=LAYERS["small" if small else "full"], ff=WIDTH)
        figures: dict[str, Any] = {"reading": reading(work, large)}
        print(f"loading: {figures['reading']}", file=sys.stderr, flush=True)
        versions = {"xllamacpp": metadata.version("xllamacpp"), "ollama": toolchain.BY_NAME["ollama"].version}

        def measure(name: str, case: Case, rounds: int) -> None:
            figures[name] = starts(case, node, name, work, rounds)
            print(f"loading: {name}: {figures[name]}", file=sys.stderr, flush=True)
            tell(figures)

        for name, case in of_packed(node, work, large).items():
            measure(name, case, ROUNDS)
        large.unlink()
        if not small:
            try:
                case, more = of_vllm(node, work)
                versions |= more
            except (Exception, NotReady) as error:
                figures["vllm"] = failure(error)
            else:
                measure("vllm", case, 1)
    failed = [name for name, each in figures.items() if "error" in each]
    keep("loading", beside("python -m bench.loading", load_before, versions) | {"figures": figures}, whole=not small and not failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
