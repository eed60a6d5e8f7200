"""When a conversation's next turn is answered sooner, by where its prompt was kept; and texts that are embedded twice. Writes
bench/results/cache.json.

The engines are llama.cpp, as our model server runs it, and Ollama, with a made-up model that costs real time: a conversation of 20,000
tokens has 40 MiB of keys and values. Each engine has one slot: another conversation in between moves the first one into host memory.

Loopback only, about twenty minutes, beside nothing else:
    python -m bench.cache
A run of a minute, to see that it works, prints its figures and writes nothing:
    python -m bench.cache small
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
from gguf import PoolingType

from bench.conditions import beside, keep
from bench.processes import end_with_us
from devcluster import toolchain
from model_sync import gguf
from tests import tiny_gguf
from tests.service import ollama
from tests.service.conftest import KEY, as_user, running_valkey, start_api_server, start_model_server
from tests.service.processes import Service, free_port
from tests.service.test_gateway import metric

CHAT, EMBED = "cache:1", "embed:1"
CONTEXT, CACHE_MIB = 32_768, 256
LAYERS, FEED_FORWARD = 8, 2048
"""Of the model that chats: what a token costs."""
GROWTH, ANSWER = 100, 4
"""Tokens that a turn adds, and of an answer."""
AIM = 5.0
"""Times sooner than cold."""
PAYS = 1.2
"""Times sooner from which on host memory counts as worth its while."""
_LETTER = "é"
"""Two tokens of the model."""
BATCH, CHUNK = 100, 120
"""Texts of a request, and characters of each."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything a run does."""

    tokens: int
    """Of the conversation."""
    rounds: int
    """The median of which counts."""
    lengths: tuple[int, ...]
    """Tokens of conversations that show from where on host memory pays."""
    chunks: int
    """Texts to embed."""


FULL = Sizes(20_000, 3, (125, 250, 500, 1000, 2000, 4000, 8000), 10_000)
SMALL = Sizes(2_000, 1, (250, 1000), 300)


class Conversation:
    """One agent's: each turn repeats all of it."""

    def __init__(self, number: int, tokens: int) -> None:
        name = f"{random.Random(number).getrandbits(64):x}"  # noqa: S311 (not a secret)
        self._messages = [{"role": "system", "content": name + _LETTER * (tokens // 2)}, {"role": "user", "content": "Mend it."}]

    def ask(self, url: str) -> tuple[float, int | None]:
        """Seconds to the first event of the next turn, and the tokens of its prompt that the server had kept, where it says so."""
        body = {"model": CHAT, "messages": self._messages, "max_tokens": ANSWER, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        began, first, said, kept = time.monotonic(), 0.0, "", None
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600, trust_env=False) as answer:
            if answer.status_code != 200:
                raise SystemExit(f"{url}: got {answer.status_code} {answer.read().decode()[:300]}, want an answer")
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                first = first or time.monotonic() - began
                event = json.loads(line.removeprefix("data: "))
                said += "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices") or [])
                kept = ((event.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens", kept)
        self._messages += [{"role": "assistant", "content": said}, {"role": "user", "content": _LETTER * (GROWTH // 2)}]
        return first, kept


class Engine:
    """One kind of server, of which new ones can be started. `keeps`: where one leaves its conversations to the next; None: nowhere."""

    def __init__(self, start: Callable[[ExitStack, Path | None], Service], keeps: Path | None = None) -> None:
        self._start, self.keeps = start, keeps

    @contextmanager
    def running(self, keeps: Path | None = None) -> Iterator[str]:
        """The URL of a new one, with the model in memory. At the end it is told to stop, as in a rolling update."""
        with ExitStack() as stack:
            service = self._start(stack, keeps)
            # The first request of a process is slower than all others.
            Conversation(0, 64).ask(service.url)
            yield service.url
            service.process.terminate()
            service.ended()


def engines(work: Path, store: Path) -> dict[str, Engine]:
    program = ollama.install(work / "ollama")
    served = {"CONTEXT_LENGTH": str(CONTEXT), "PARALLEL": "1", "PROMPT_CACHE_MIB": str(CACHE_MIB), "MAX_QUEUE": "8"}
    loaded = {"OLLAMA_CONTEXT_LENGTH": str(CONTEXT), "OLLAMA_NUM_PARALLEL": "1", "LLAMA_ARG_CACHE_RAM": str(CACHE_MIB)}

    def of_ours(stack: ExitStack, keeps: Path | None) -> Service:
        kept = {"KEPT_DIR": str(keeps), "KEPT_MIB": str(CACHE_MIB), "DRAIN_DELAY_S": "0"} if keeps else {}
        return start_model_server(stack, store, work, CHAT, "/ready", None, **served, **kept)

    def of_ollama(stack: ExitStack, _: Path | None) -> Service:
        service = stack.enter_context(ollama.running(program, store, work, 0, **loaded))
        ollama.load(service, CHAT)
        return service

    return {
        "model_server": Engine(of_ours, work / "kept"),
        "ollama": Engine(of_ollama),
    }


def turns(engine: Engine, sizes: Sizes) -> dict[str, Any]:
    """Seconds to the first event of a turn, by where the prompt of the one before was kept."""
    found: dict[str, list[tuple[float, int | None]]] = {
        name: [] for name in ("cold", "same_slot", "host_memory", "restarted", "rolled", "elsewhere")
    }
    for number in range(1, sizes.rounds + 1):
        conversation, other = Conversation(number, sizes.tokens), Conversation(-number, sizes.tokens)
        with engine.running() as url:
            found["cold"].append(conversation.ask(url))
            found["same_slot"].append(conversation.ask(url))
            other.ask(url)
            found["host_memory"].append(conversation.ask(url))
            with engine.running() as second:
                found["elsewhere"].append(conversation.ask(second))
        with engine.running() as url:
            found["restarted"].append(conversation.ask(url))
        if engine.keeps is not None:
            with engine.running(engine.keeps) as url:
                conversation.ask(url)
            with engine.running(engine.keeps) as url:
                found["rolled"].append(conversation.ask(url))
    results: dict[str, Any] = {}
    for name, each in ((name, each) for name, each in found.items() if each):
        first_s = statistics.median(seconds for seconds, _ in each)
        kept = [tokens for _, tokens in each if tokens is not None]
        results[name] = {"first_event_s": round(first_s, 3), "kept_tokens": round(statistics.median(kept)) if kept else None}
        results[name]["times_sooner_than_cold"] = round(results["cold"]["first_event_s"] / first_s, 1)
    return results


def from_where_on(engine: Engine, sizes: Sizes) -> dict[str, Any]:
    """By the tokens of a conversation, seconds to the first event cold and from host memory; and the least from which on that pays."""
    by_length: dict[int, tuple[float, float]] = {}
    with engine.running() as url:
        for length in sizes.lengths:
            cold, kept = list[float](), list[float]()
            for number in range(sizes.rounds):
                conversation = Conversation(1000 * length + number, length)
                cold.append(conversation.ask(url)[0])
                Conversation(-1000 * length - number, length).ask(url)
                kept.append(conversation.ask(url)[0])
            by_length[length] = statistics.median(cold), statistics.median(kept)
    pays = [length for length, (cold, kept) in by_length.items() if cold >= PAYS * kept]
    loses = [length for length in by_length if length not in pays]
    least = next((length for length in pays if length > max(loses, default=0)), None)
    rows = {str(length): {"cold_s": round(cold, 4), "host_memory_s": round(kept, 4)} for length, (cold, kept) in by_length.items()}
    return {"by_tokens": rows, "pays_from_tokens": least}


def embedded_twice(work: Path, store: Path, sizes: Sizes) -> dict[str, Any]:
    """Seconds for all texts, through a gateway with a cache server: the first time, and the second."""
    draw, port = random.Random(18), free_port()  # noqa: S311 (not a secret)
    texts = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=CHUNK)) for _ in range(sizes.chunks)]
    (directory := work / "gateway").mkdir()
    with ExitStack() as stack:
        stack.enter_context(running_valkey(directory, port))
        served = {"CONTEXT_LENGTH": "2048", "PARALLEL": "4", "MAX_QUEUE": "8"}
        server = start_model_server(stack, store, directory, EMBED, "/ready", None, **served)
        agreement = as_user(f"redis://127.0.0.1:{port}/0", "api-server", directory)
        route: dict[str, object] = {"url": server.url, "context_length": 2048}
        api = start_api_server(stack, directory, {EMBED: route}, "/ready", None, 0, **agreement)
        seconds = [_embed(api.url, texts) for _ in range(2)]
        outcomes = {each: metric(api, "api_server_embeddings_total", model=EMBED, outcome=each) for each in ("made", "found")}
    return {
        "first_s": round(seconds[0], 2),
        "second_s": round(seconds[1], 2),
        "times_sooner": round(seconds[0] / seconds[1], 1),
        **{name: round(value) for name, value in outcomes.items()},
    }


def _embed(url: str, texts: Sequence[str]) -> float:
    began = time.monotonic()
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=600, trust_env=False) as client:
        for start in range(0, len(texts), BATCH):
            body = {"model": EMBED, "input": texts[start : start + BATCH]}
            client.post(f"{url}/v1/embeddings", json=body).raise_for_status()
    return time.monotonic() - began


def measured(work: Path, sizes: Sizes) -> dict[str, Any]:
    store = work / "models"
    shape: dict[str, Any] = {"layers": LAYERS, "ff": FEED_FORWARD}
    gguf.add(CHAT, tiny_gguf.make(work / "chat.gguf", "tick tock ", loop=True, context=CONTEXT, **shape), store)
    gguf.add(EMBED, tiny_gguf.make(work / "embed.gguf", "tick.", pooling=PoolingType.MEAN, layers=2, ff=1024), store)
    results: dict[str, Any] = {}
    for name, engine in engines(work, store).items():
        print(f"cache: turns of {name}", file=sys.stderr, flush=True)
        results[name] = {"turns": turns(engine, sizes), "host_memory": from_where_on(engine, sizes)}
    print("cache: embeddings", file=sys.stderr, flush=True)
    results["embeddings"] = embedded_twice(work, store, sizes)
    return results


def met(results: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each engine answers so much sooner from each place where it keeps prompts."""
    return {
        f"{name}, {place}": results[name]["turns"][place]["times_sooner_than_cold"] >= AIM
        for name in ("model_server", "ollama")
        for place in ("same_slot", "host_memory", "rolled")
        if place in results[name]["turns"]
    }


def main(arguments: Sequence[str]) -> int:
    sizes = SMALL if list(arguments) == ["small"] else FULL
    end_with_us()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        results = measured(Path(directory), sizes)
    versions = {"xllamacpp": metadata.version("xllamacpp"), "ollama": toolchain.BY_NAME["ollama"].version}
    shape = {"context": CONTEXT, "cache_mib": CACHE_MIB, "layers": LAYERS, "feed_forward": FEED_FORWARD, "batch": BATCH, "chunk": CHUNK}
    record = beside("python -m bench.cache", load_before, versions) | {
        "sizes": {**asdict(sizes), **shape},
        "results": results,
        "aim": {"times_sooner_than_cold": AIM, "met": met(results)},
    }
    keep("cache", record, whole=sizes is FULL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
