"""One real model by each engine that can be had here, and what our model server costs above the bare engine. Writes
bench/results/engines.json.

The model is that of the dev stack, of 135 million parameters: packed, for llama.cpp and Ollama; unpacked, as safetensors in bfloat16,
for vLLM and for transformers' own server. Those two have an environment of their own (tests/proofs/vllm.lock). Engines run one after the
other, each with eight requests at once at most, where it has such a limit. An engine that does not start or answer has its error in place
of figures; nothing is kept where that is one of our own, but bench/results/engines.partial.json has what was found.

Loopback only, about an hour and 7 GB of disk, beside nothing else:
    python -m bench.engines
A run of seconds, of llama.cpp and Ollama alone, prints its figures and writes nothing:
    python -m bench.engines small
"""

import asyncio
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import load
from bench.conditions import beside, keep, keep_so_far
from bench.gateway import percentile
from bench.load import Server, Tally
from bench.processes import NotReady, all_ended, descendants, end_with_us, memory_bytes, own_cpu_s, started, wait_for
from devcluster import toolchain
from images import embedded
from model_server import vllm
from model_server.engines import LlamaCpp, Vllm
from model_server.settings import Settings
from model_sync import gguf, tree
from tests.proofs.test_vllm import TREE
from tests.service import ollama
from tests.service.conftest import start_model_server
from tests.service.processes import ROOT, free_port

MODEL, CONTEXT, PARALLEL, TOKENS = "real:1", 2048, 8, 64
QUESTION = "Write a long story about a lighthouse, with many details."
PAIRS = {"model server, llama.cpp": "llama.cpp", "model server, vllm": "vllm"}
"""Ours, and the bare engine that it is held against."""
OF_TREES = ("model server, vllm", "vllm", "transformers")
_START_S = 600
_ANSWER_S = 600
"""For one answer: behind 31 others, where an engine has one after the other."""
_LEVEL_S = 60
"""After so long no chat begins: an engine that has one after the other is known by then."""
_INSTALL_S = 1800
_LOCK = ROOT / "tests" / "proofs" / "vllm.lock"


@dataclass(frozen=True)
class Sizes:
    """How much of everything a run does."""

    at_once: tuple[int, ...]
    each: int
    """Requests of each chat, one after the other."""
    rounds: int
    """In which ours and the bare engine take turns; the median of the rounds counts. The others have one."""


FULL = Sizes((1, 8, 32), 2, 3)
SMALL = Sizes((1, 4), 1, 1)


@dataclass(frozen=True)
class Running:
    """An engine that answers."""

    url: str
    pid: int
    model: str = MODEL
    supervised: bool = False
    """Whether the process that was started generates nothing itself."""

    def cpu_s(self) -> dict[int, float]:
        """Of the process that was started, which is the first, and of each that it started."""
        return {each: own_cpu_s(each) for each in descendants(self.pid)}


def measured(running: Running, sizes: Sizes) -> dict[str, Any]:
    """Of each level: tokens a second of all chats, milliseconds to the first token, and CPU. Raises NotReady without any answer."""
    server, results = Server(running.url, patience_s=_ANSWER_S), {}
    request = server.request(QUESTION, stream=True, model=running.model, temperature=0, max_tokens=TOKENS)
    _answered(asyncio.run(load.repeated(server, request, 1, 1)), 1)
    for chats in sizes.at_once:
        first_s: list[float] = []
        before, began = running.cpu_s(), time.monotonic()
        tally = _answered(asyncio.run(load.repeated(server, request, chats * sizes.each, chats, first_s, _LEVEL_S)), chats)
        took_s = time.monotonic() - began
        used = {pid: now - before.get(pid, 0.0) for pid, now in running.cpu_s().items()}
        supervisor = used.pop(running.pid) if running.supervised else None
        results[str(chats)] = {
            "tokens_a_second": round(tally.parts / took_s, 1),
            "tokens_a_request": round(tally.parts / tally.answered, 1),
            "first_token_p50_ms": round(1000 * percentile(first_s, 0.5), 1),
            "failed": tally.failed,
            "cpu_ms": {"engine_a_request": round(1000 * sum(used.values()) / tally.answered, 3)},
        }
        if supervisor is not None:
            of_ours = {"request": tally.answered, "token": tally.parts}
            results[str(chats)]["cpu_ms"] |= {f"supervisor_a_{of}": round(1000 * supervisor / count, 4) for of, count in of_ours.items()}
    return results | {"memory_mib": round(memory_bytes(running.pid) / 2**20)}


def _answered(tally: Tally, chats: int) -> Tally:
    if not tally.parts:
        raise NotReady(
            f"{chats} chats at once: got {tally.failed} failures and no text in {_ANSWER_S} s, want answers; see the engine's log"
        )
    return tally


@contextmanager
def model_server(store: Path, work: Path, process: Mapping[str, str], **env: str) -> Iterator[Running]:
    """Ours."""
    with ExitStack() as stack:
        shape = {"CONTEXT_LENGTH": str(CONTEXT), "PARALLEL": str(PARALLEL), "MAX_QUEUE": "64", "MODEL_ID": MODEL, "DRAIN_DELAY_S": "0"}
        service = start_model_server(stack, store, work, MODEL, "", process, **shape, **env)
        service.wait_for("/ready", timeout_s=_START_S)
        yield Running(service.url, service.process.pid, supervised=True)


@contextmanager
def bare_llama_cpp(weights: Path, work: Path) -> Iterator[Running]:
    """The engine's process of ours, without its supervisor."""
    settings = Settings(model=MODEL, model_id=MODEL, context_length=CONTEXT, parallel=PARALLEL)
    argv = [sys.executable, "-m", LlamaCpp.module, json.dumps(LlamaCpp(weights, settings).parameters)]
    with (
        (work / "log").open("ab") as log,
        subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None and process.stdin is not None  # noqa: S101 (pipes were asked for)
        try:
            if not select.select([process.stdout], [], [], _START_S)[0]:
                raise NotReady(f"llama.cpp: got no address in {_START_S} s, want one; it said:\n{(work / 'log').read_text()[-2000:]}")
            url = json.loads(process.stdout.readline() or "{}").get("url", "")
            wait_for(f"{url}/health", process, work / "log", _START_S)
            yield Running(url, process.pid)
        finally:
            process.kill()


@contextmanager
def bare_vllm(python: Path, weights: Path, work: Path, **more: str) -> Iterator[Running]:
    """`more`: of its environment."""
    settings = Settings(model=MODEL, **_vllm(python, work))
    port = free_port()
    env = vllm.environment({"PATH": os.environ["PATH"], "VLLM_CPU_KVCACHE_SPACE": "1", **more}, str(python), str(work))
    with started(vllm.command(Vllm(weights, settings).parameters, port), env, work) as process:
        wait_for(f"http://127.0.0.1:{port}/health", process, work / "log", _START_S)
        yield Running(f"http://127.0.0.1:{port}", process.pid)


def _vllm(python: Path, work: Path) -> dict[str, Any]:
    given = {"engine": "vllm", "vllm_python": python, "vllm_cache_dir": work / "cache", "dtype": "bfloat16", "enforce_eager": True}
    return given | {"model_id": MODEL, "context_length": CONTEXT, "parallel": PARALLEL}


@contextmanager
def transformers(python: Path, weights: Path, work: Path) -> Iterator[Running]:
    """Its own server. It runs without continuous batching, which says nothing on a CPU (5.19.0): each request waits for those before it."""
    port = free_port()
    argv = [str(python.with_name("transformers")), "serve", str(weights), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--device", "cpu", "--dtype", "bfloat16"]
    env = {"PATH": os.environ["PATH"], "HOME": str(work), "HF_HUB_OFFLINE": "1"}
    with started(argv, env, work) as process:
        wait_for(f"http://127.0.0.1:{port}/health", process, work / "log", _START_S)
        yield Running(f"http://127.0.0.1:{port}", process.pid, str(weights))


@contextmanager
def ollamas(store: Path, work: Path, program: Path | None = None) -> Iterator[Running]:
    """`program`: where it was installed before."""
    program = program or ollama.install(work / "program")
    shape = {"OLLAMA_NUM_PARALLEL": str(PARALLEL), "OLLAMA_CONTEXT_LENGTH": str(CONTEXT)}
    with ollama.running(program, store, work, 0, **shape) as service:
        yield Running(service.url, service.process.pid, supervised=True)


Start = Callable[..., Any]


def of_llama_cpp(work: Path) -> dict[str, Start]:
    """The packed model by each."""
    [weights] = embedded.default_model().values()
    store = work / "packed"
    gguf.add(MODEL, weights, store)
    return {
        "model server, llama.cpp": partial(model_server, store, process={}),
        "llama.cpp": partial(bare_llama_cpp, weights),
        "ollama": partial(ollamas, store),
    }


def of_trees(work: Path) -> tuple[dict[str, Start], dict[str, str]]:
    """The unpacked model by each, and the versions of their packages."""
    uv, target = Path(sys.executable).with_name("uv"), work / "python"
    python = target / "bin" / "python"
    print("engines: an environment with vLLM, of 7 GB", file=sys.stderr, flush=True)
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, target], check=True, timeout=_INSTALL_S)
    argv = [uv, "pip", "install", "-q", "--python", python, "--require-hashes", "--no-deps", "-r", _LOCK]
    subprocess.run(argv, check=True, timeout=_INSTALL_S)
    [weights] = embedded.default_model().values()
    (work / "packed.gguf").symlink_to(weights)
    env = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    argv = [python, "-c", TREE, str(work), "packed.gguf", str(work / "tree")]
    subprocess.run(argv, check=True, env=env, stdout=subprocess.DEVNULL, timeout=_START_S)
    store = work / "trees"
    tree.add(MODEL, work / "tree", store)

    def ours(work: Path) -> Any:
        process = {"VLLM_CPU_KVCACHE_SPACE": "1", "HOME": str(work)}
        given = {"ENGINE": "vllm", "VLLM_PYTHON": str(python), "WEIGHTS_DIR": str(work / "weights"), "VLLM_CACHE_DIR": str(work / "cache")}
        return model_server(store, work, process, DTYPE="bfloat16", ENFORCE_EAGER="1", **given)

    ask = "from importlib import metadata; print(*(metadata.version(each) for each in ('vllm-cpu', 'transformers')))"
    said = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True, timeout=_START_S).stdout.split()
    of_each = (ours, partial(bare_vllm, python, work / "tree"), partial(transformers, python, work / "tree"))
    starts: dict[str, Start] = dict(zip(OF_TREES, of_each, strict=True))
    return starts, dict(zip(("vllm-cpu", "transformers"), said, strict=True))


def in_turns(
    starts: Mapping[str, Start], sizes: Sizes, work: Path, tell: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> dict[str, list[dict[str, Any]]]:
    """Each engine's rounds: all of them see the same machine. An engine that failed, or is compared with none, gets no second round.
    `tell` hears after each what was found so far."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in starts}
    for number in range(sizes.rounds):
        for name, start in starts.items():
            if number and ("error" in results[name][-1] or name not in {*PAIRS, *PAIRS.values()}):
                continue
            print(f"engines: {name}, round {number + 1}", file=sys.stderr, flush=True)
            (own := work / f"{name.replace(', ', '-').replace(' ', '-')}-{number}").mkdir()
            results[name].append(_round(start, sizes, own))
            print(f"engines: {results[name][-1]}", file=sys.stderr, flush=True)
            tell(results)
    return results


def _round(start: Start, sizes: Sizes, own: Path) -> dict[str, Any]:
    began = time.monotonic()
    try:
        with all_ended(), start(work=own) as running:
            ready_s = round(time.monotonic() - began, 1)
            return {"ready_s": ready_s, **measured(running, sizes)}
    except (Exception, NotReady) as error:
        return failure(error)


def failure(error: BaseException) -> dict[str, Any]:
    """The row of what has no figures."""
    return {"error": f"{type(error).__name__}: {str(error)[-1000:]}"}


def middle(rounds: Sequence[Mapping[str, Any]]) -> Any:
    """The median of each figure, whatever it is nested in; the error, where there is one."""
    first = next((each for each in rounds if "error" in each), rounds[0])
    if "error" in first:
        return first
    return {
        name: middle([each[name] for each in rounds]) if isinstance(value, dict) else percentile([each[name] for each in rounds], 0.5)
        for name, value in first.items()
    }


def ratios(results: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens a second through our model server, as a part of those of the bare engine."""
    found: dict[str, Any] = {}
    for name, engine in PAIRS.items():
        ours, bare = results.get(name, {}), results.get(engine, {})
        if ours and bare and "error" not in ours | bare:
            levels = [each for each in ours if each.isdigit()]
            found[engine] = {each: round(ours[each]["tokens_a_second"] / bare[each]["tokens_a_second"], 3) for each in levels}
    return found


def main(arguments: Sequence[str]) -> int:
    sizes = SMALL if list(arguments) == ["small"] else FULL
    end_with_us()
    load_before = os.getloadavg()[0]
    with all_ended(), tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        starts, versions = of_llama_cpp(work), {"xllamacpp": metadata.version("xllamacpp"), "ollama": toolchain.BY_NAME["ollama"].version}
        results: dict[str, Any] = {}
        if sizes is FULL:
            try:
                trees, more = of_trees(work)
                starts, versions = starts | trees, versions | more
            except (Exception, NotReady) as error:
                results = dict.fromkeys(OF_TREES, failure(error))
        told = [partial(keep_so_far, "engines")] if sizes is FULL else []
        results = {name: middle(rounds) for name, rounds in in_turns(starts, sizes, work, *told).items()} | results
    shape = {"context": CONTEXT, "parallel": PARALLEL, "tokens": TOKENS}
    record = beside("python -m bench.engines", load_before, versions) | {
        "sizes": {**asdict(sizes), **shape},
        "results": results,
        "tokens_a_second_by_those_of_the_bare_engine": ratios(results),
    }
    failed = [name for name in PAIRS if "error" in results.get(name, {})]
    keep("engines", record, whole=sizes is FULL and not failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
