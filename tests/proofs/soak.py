"""Twenty minutes of chats on an engine, half of which their clients leave at a random moment: nothing grows, and no place stays taken.

Each engine has a proof of its own (test_soak_llama_cpp.py, test_soak_ollama.py, test_soak_vllm.py): a change of one engine makes that one
stale alone.
"""

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.processes import descendants

SOAK_S, WARM_S, LOOK_S = 1200.0, 300.0, 2.0
"""Of chats; until memory counts; between two looks at it."""
CLIENTS, PLACES, CONTEXT = 6, 4, 2048
"""More clients than places: some chats are left while they wait."""
SUPERVISOR_MIB, ENGINE_MIB, DESCRIPTORS = 16, 96, 8
"""By which the processes may grow beyond what they had after WARM_S. An engine frees to its allocator, which keeps some of it; eight chats
of a leak of 1 % of their KV cache would be more."""
FREE_S = 1.0
MODEL = "real:1"
WORDS = (
    "lighthouse",
    "harbour",
    "winter",
    "engine",
    "copper",
    "orchard",
    "letter",
    "river",
    "clock",
    "garden",
    "signal",
    "paper",
    "bridge",
)


@dataclass(frozen=True)
class Soaked:
    """An engine and what stands around it."""

    url: str
    supervisors: Sequence[int]
    """Processes of ours, or of Ollama's, that generate nothing."""
    submit: Callable[[Callable[[], Any]], "Future[Any]"]
    """Runs a client where it reaches the engine."""

    def engine(self) -> list[int]:
        """Everything that the supervisors started."""
        return [each for parent in self.supervisors for each in descendants(parent)[1:] if each not in self.supervisors]


@dataclass
class Looks:
    """At memory, in MiB, with the second of each."""

    supervisor: list[tuple[float, float]] = field(default_factory=list)
    engine: list[tuple[float, float]] = field(default_factory=list)

    def take(self, soaked: Soaked, at_s: float) -> None:
        self.supervisor.append((at_s, sum(map(resident_mib, soaked.supervisors))))
        self.engine.append((at_s, sum(map(resident_mib, soaked.engine()))))

    def growth(self, of: str) -> dict[str, float]:
        """The median of a tenth of the time after WARM_S, and of the last tenth."""
        found: list[tuple[float, float]] = getattr(self, of)
        part = (SOAK_S - WARM_S) / 10
        before = statistics.median(mib for at_s, mib in found if WARM_S <= at_s <= WARM_S + part)
        after = statistics.median(mib for at_s, mib in found if at_s >= SOAK_S - part)
        return {f"{of}_mib_when_warm": round(before, 1), f"{of}_mib_at_the_end": round(after, 1)}


def resident_mib(pid: int) -> float:
    """Anonymous memory: pages of a file that is mapped, as weights are, come and go with what else the machine does."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) / 1024


def descriptors(soaked: Soaked) -> int:
    return sum(map(_open_now, (*soaked.supervisors, *soaked.engine())))


def _open_now(pid: int) -> int:
    """None of a process that has just ended."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def chat(url: str, draw: random.Random, done: "Counter[str]") -> None:
    """One, which its client leaves or hears to its end."""
    asked = " ".join(draw.choices(WORDS, k=draw.randrange(4, 200)))
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"Tell of {asked}."}], "max_tokens": draw.randrange(1, 160)}
    leaves, streams = draw.random() < 0.5, draw.random() < 0.7
    leave_s = draw.uniform(0.05, 4.0) if leaves else 120.0
    address, began = f"{url}/v1/chat/completions", time.monotonic()
    try:
        if not streams:
            answer = httpx.post(address, json=body, timeout=httpx.Timeout(leave_s, connect=30), trust_env=False)
            done["answered" if answer.status_code == 200 else f"status {answer.status_code}"] += 1
            return
        timeout = httpx.Timeout(leave_s, connect=30)
        with httpx.stream("POST", address, json={**body, "stream": True}, timeout=timeout, trust_env=False) as response:
            if response.status_code != 200:
                done[f"status {response.status_code}"] += 1
                return
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    done["answered"] += 1
                    return
                if leaves and time.monotonic() - began > leave_s:
                    done["left in its stream"] += 1
                    return
        done["streams without an end"] += 1
    except httpx.ReadTimeout:
        done["left while it waited" if leaves else "not answered"] += 1
    except httpx.HTTPError as error:
        done[type(error).__name__] += 1


def at_once(soaked: Soaked) -> float:
    """Seconds until all places have answered a chat of one token each: more chats than free places would wait for each other."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}

    def one() -> int:
        return httpx.post(f"{soaked.url}/v1/chat/completions", json=body, timeout=60, trust_env=False).status_code

    began = time.monotonic()
    assert [each.result() for each in [soaked.submit(one) for _ in range(PLACES)]] == [200] * PLACES
    return time.monotonic() - began


def soak(soaked: Soaked, figures: dict[str, Any]) -> None:
    """The whole of it on one engine."""
    seed = time.time_ns() % 10**9
    figures |= {"seed": seed, "seconds": SOAK_S}
    at_once(soaked)
    quick_s = statistics.median(at_once(soaked) for _ in range(5))
    before, done, over = descriptors(soaked), Counter[str](), threading.Event()

    def client(number: int) -> None:
        draw = random.Random(seed + number)  # noqa: S311 (not a secret)
        while not over.is_set():
            chat(soaked.url, draw, done)

    looks, began = Looks(), time.monotonic()
    clients = [soaked.submit(lambda number=number: client(number)) for number in range(CLIENTS)]
    try:
        while (at_s := time.monotonic() - began) < SOAK_S:
            looks.take(soaked, at_s)
            assert soaked.engine(), f"the engine has ended after {at_s:.0f} s: {done}"
            for each in clients:
                assert not each.done(), each.result()
            time.sleep(LOOK_S)
    finally:
        # Whatever went wrong: a client that is not told asks for ever.
        over.set()
    for each in clients:
        each.result(timeout=180)
    # No client is left; what they held has this long to be free.
    time.sleep(FREE_S)
    after_s = at_once(soaked)
    figures |= {"chats": dict(done), "all_places_answer_s": {"before": round(quick_s, 2), "after": round(after_s, 2)}}
    figures |= looks.growth("supervisor") | looks.growth("engine")
    deadline = time.monotonic() + 30
    # A connection that its client closed is closed by the server a moment later.
    while (open_now := descriptors(soaked)) > before + DESCRIPTORS and time.monotonic() < deadline:
        time.sleep(0.5)
    figures |= {"descriptors": {"before": before, "after": open_now}}
    answered, left = done["answered"], done["left in its stream"] + done["left while it waited"]
    assert answered + left == done.total(), f"chats that failed: {done}"
    assert min(answered, left) > SOAK_S / 30, f"too few to tell: {done}"
    # As quick as before, on a machine that may be busy with something else now.
    assert after_s < 3 * quick_s + 2, "a place is still taken"
    assert figures["supervisor_mib_at_the_end"] - figures["supervisor_mib_when_warm"] < SUPERVISOR_MIB, "what is around the engine grows"
    assert figures["engine_mib_at_the_end"] - figures["engine_mib_when_warm"] < ENGINE_MIB, "the engine grows"
    assert open_now <= before + DESCRIPTORS, "descriptors stay open"


SHAPE = {"CONTEXT_LENGTH": str(CONTEXT), "PARALLEL": str(PLACES), "MAX_QUEUE": "64", "DRAIN_DELAY_S": "0"}
"""Of a model server."""


@contextmanager
def clients() -> Iterator[ThreadPoolExecutor]:
    """Of an engine that this process reaches."""
    with ThreadPoolExecutor(max(CLIENTS, PLACES)) as pool:
        yield pool
