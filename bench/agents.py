"""Coding agents before four real servers of a model: which gateway ends most turns. Writes bench/results/agents.json.

Each agent sends its whole history with each turn and waits for its tools. All share the beginning of their system prompt. On the way an
agent has a sub-agent do a part, which names its parent as opencode does, and later replaces its history by a summary; after some turns it
begins anew. At first each is somewhere on that way, as the agents of a fleet are. The servers are llama.cpp
with a made-up model that costs real time, each with memory for a few conversations. Ours, nginx, vllm-router and LiteLLM stand before the
same servers, started anew for each, in the setting that keeps conversations together; nginx also with its least busy server for each
request. A turn that is told to come again does so after the time that it is told, as clients do.

Loopback only, half an hour, beside nothing else:
    python -m bench.agents
A run of seconds, to see that it works, prints its figures and writes nothing:
    python -m bench.agents small
"""

import asyncio
import dataclasses
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from bench import proxies
from bench.conditions import beside, keep
from bench.gateway import percentile
from bench.processes import end_with_us, started, wait_for
from bench.proxies import KEY, Installed
from bench.upstream import MODEL
from model_sync import gguf
from tests import tiny_gguf
from tests.service import names
from tests.service.processes import ROOT, free_port

SERVERS, SLOTS, CACHE_MIB, CONTEXT = 4, 2, 12, 16_384
LAYERS, FEED_FORWARD = 2, 2048
"""Of the model: what a token costs."""
PROMPT, GROWTH, TURNS, ANSWER, TOOLS_S = 4000, 200, 20, 16, 1.0
"""Tokens that a conversation begins with, tokens that each turn adds, turns, tokens of an answer, and mean seconds between two turns."""
SHARED, HELP_AFTER, HELP_TURNS, SUMMARY_AFTER, SUMMARY = 1000, 8, 5, 14, 1000
"""Of the prompt, the tokens that all have; the turn after which a sub-agent works, and its turns; the turn after which a summary takes the
place of the history, and its tokens."""
_LETTER = "é"
"""Two tokens of the model, and six bytes as clients send it."""
_KV_BYTES = 2 * 2 * LAYERS * 64
"""Of one token: keys and values of 16 bits, one head of 64 in each layer."""
_SESSION, _PARENT = "x-session-id", "x-parent-session-id"
"""The header that all four know, and the one in which opencode says whose sub-agent it is."""
_LONGEST_RETRY_S = 8.0


@dataclass(frozen=True)
class Sizes:
    """How much of everything a run does."""

    agents: tuple[int, ...]
    warm_up_s: float
    measured_s: float


FULL = Sizes((8, 24, 96), 25, 50)
SMALL = Sizes((4,), 2, 6)


@dataclass
class Found:
    """What agents saw, from the end of the warm-up on."""

    turns: int = 0
    again: int = 0
    """Answers that told a client to come again."""
    failed: Counter[str] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    """From the first try of a turn to the first event of its answer."""
    reusable: int = 0
    """Tokens of prompts that a server had read for the turn before or, of a new conversation, for any: what all have."""


class Agent:
    """One at a time, until it is cancelled."""

    def __init__(self, number: int, session: aiohttp.ClientSession, url: str, found: Found, wrapping: float) -> None:
        """`wrapping`: tokens that the model's template puts around a message."""
        self._numbers = random.Random(number)  # noqa: S311
        self._session, self._url, self.found, self._wrapping = session, url, found, wrapping

    async def run(self) -> None:
        await asyncio.sleep(self._numbers.uniform(0, TOOLS_S))
        before = self._numbers.randrange(TURNS)
        while True:
            await self._conversation({_SESSION: f"{self._numbers.getrandbits(64):x}"}, before=before)
            before = 0

    async def _conversation(self, named: dict[str, str], turns: int = TURNS, *, before: int = 0) -> None:
        """`before`: turns that it had elsewhere."""
        name = named[_SESSION]
        system = {"role": "system", "content": self._text(SHARED) + name + self._text(PROMPT - SHARED)}
        messages = [system, {"role": "user", "content": "Mend it."}]
        known = SHARED
        for turn in range(turns):
            said = self._text(ANSWER)
            if turn >= before:
                said = await self._turn(named, messages)
                self.found.reusable += known
                known = self._tokens(messages)
                await asyncio.sleep(self._numbers.expovariate(1 / TOOLS_S))
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": self._text(GROWTH)}]
            if turn == HELP_AFTER and turn >= before:
                await self._conversation({_SESSION: f"{name}-helper", _PARENT: name}, HELP_TURNS)
            if turn == SUMMARY_AFTER:
                messages = [system, {"role": "user", "content": self._text(SUMMARY)}]
                known = min(known, self._tokens([system]))

    def _tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        return sum(len(each["content"].encode()) for each in messages) + round(self._wrapping * len(messages))

    @staticmethod
    def _text(tokens: int) -> str:
        return _LETTER * (tokens // 2)

    async def _turn(self, named: Mapping[str, str], messages: list[dict[str, str]]) -> str:
        body = {"model": MODEL, "messages": messages, "max_tokens": ANSWER, "temperature": 0, "stream": True}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **named}
        data, began = json.dumps(body).encode(), time.monotonic()
        while True:
            try:
                async with self._session.post(f"{self._url}/v1/chat/completions", data=data, headers=headers) as answer:
                    if answer.status == 200 and (said := await self._read(answer, began)) is not None:
                        return said
                    self.found.again += answer.status in (200, 429, 503)
                    self.found.failed[str(answer.status)] += answer.status not in (200, 429, 503)
                    await asyncio.sleep(min(float(answer.headers.get("Retry-After") or 1), _LONGEST_RETRY_S))
            except aiohttp.ClientError as error:
                self.found.failed[type(error).__name__] += 1
                await asyncio.sleep(1)

    async def _read(self, answer: aiohttp.ClientResponse, began: float) -> str | None:
        """None: it waited, and was told so until it was told to come again."""
        first, said = None, ""
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return None
            first = first or time.monotonic()
            choices = event.get("choices") or [{}]
            said += choices[0].get("delta", {}).get("content") or ""
        self.found.turns += 1
        self.found.first_s.append((first or time.monotonic()) - began)
        return said


async def load(url: str, agents: int, sizes: Sizes, servers: Sequence[str]) -> dict[str, Any]:
    """All agents at work, and what came of it."""
    found, wrapping = Found(), wrapping_of(servers[0])
    timeout = aiohttp.ClientTimeout(total=None, sock_read=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        running = [Agent(number, session, url, found, wrapping) for number in range(agents)]
        tasks = [asyncio.create_task(agent.run()) for agent in running]
        await asyncio.sleep(sizes.warm_up_s)
        before = await asyncio.to_thread(counts, servers)
        counted = Found()
        for agent in running:
            agent.found = counted
        await asyncio.sleep(sizes.measured_s)
        after = await asyncio.to_thread(counts, servers)
        ended = [task.exception() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if ended:
        raise SystemExit(f"agents: got one that ended with {ended[0]!r}, want all of them at work")
    return summary(counted, [then - now for then, now in zip(after, before, strict=True)], sizes)


class Tokens(tuple[float, float]):
    """Of prompts: read, and taken from the cache."""

    __slots__ = ()

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens((self[0] - other[0], self[1] - other[1]))


def wrapping_of(server: str) -> float:
    """Tokens that the template of the model puts around a message."""

    def prompt(messages: int) -> int:
        said = [{"role": role, "content": _LETTER} for role in ("user", "assistant", "user")[:messages]]
        body = {"model": MODEL, "messages": said, "max_tokens": 1}
        answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=30, trust_env=False).raise_for_status()
        return answer.json()["usage"]["prompt_tokens"]

    return (prompt(3) - prompt(1)) / 2 - len(_LETTER.encode())


def counts(servers: Sequence[str]) -> list[Tokens]:
    """What each server says of its prompts."""

    def of(text: str, name: str) -> float:
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    texts = [httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text for url in servers]
    return [Tokens((of(text, "model_server_prompt_tokens_total"), of(text, "model_server_reused_prompt_tokens_total"))) for text in texts]


def summary(found: Found, tokens: Sequence[Tokens], sizes: Sizes) -> dict[str, Any]:
    read, reused = (sum(each[index] for each in tokens) for index in (0, 1))
    busiest = max(each[0] for each in tokens) * len(tokens) / read if read else 0
    firsts = found.first_s or [float("nan")]
    return {
        "turns_a_minute": round(60 * found.turns / sizes.measured_s, 1),
        "reused_of_all": round(reused / (read + reused), 3) if read + reused else None,
        "warm": round(reused / found.reusable, 3) if found.reusable else None,
        "first_event_p50_s": round(percentile(firsts, 0.5), 2),
        "first_event_p99_s": round(percentile(firsts, 0.99), 2),
        "most_by_mean": round(busiest, 2),
        "told_to_come_again": found.again,
        "failed": dict(+found.failed),
    }


LEAST_BUSY = "nginx-least-busy"
Change = Callable[[list[str], Path], list[str]]


def before_all(installed: Installed, change: Change) -> Installed:
    """A peer as bench/proxies.py starts it, then before all servers. `change` gets its command and its directory."""

    def start(upstream: str, directory: Path, port: int) -> tuple[list[str], Mapping[str, str]]:
        argv, env = installed.start(upstream, directory, port)
        return change(argv, directory), env

    return dataclasses.replace(installed, start=start)


def peers(work: Path, servers: Sequence[str]) -> list[Installed]:
    """Each in its own setting that keeps a conversation at one server; and nginx in that which looks at their load alone."""

    def by(rule: str) -> Change:
        def change(argv: list[str], directory: Path) -> list[str]:
            file = directory / "nginx.conf"
            lines = "".join(f"server {url.removeprefix('http://')}; " for url in servers)
            file.write_text(file.read_text().replace(f"server {servers[0].removeprefix('http://')}; ", f"{rule}; {lines}"))
            return argv

        return change

    def consistent(argv: list[str], _: Path) -> list[str]:
        at = argv.index(servers[0])
        return [*argv[:at], *servers, *argv[at + 1 :], "--policy", "consistent_hash"]

    def affine(argv: list[str], directory: Path) -> list[str]:
        file = directory / "config.yaml"
        config = json.loads(file.read_text())
        [model] = config["model_list"]
        config["model_list"] = [
            {**model, "litellm_params": {**model["litellm_params"], "api_base": f"{url}/v1"}} for url in servers
        ]  # fmt: skip
        config["router_settings"] = {"optional_pre_call_checks": ["session_affinity"]}
        file.write_text(json.dumps(config))
        return argv

    return [
        before_all(proxies.nginx(work), by(f"hash $http_{_SESSION.replace('-', '_')} consistent")),
        dataclasses.replace(before_all(proxies.nginx(work), by("least_conn")), name=LEAST_BUSY),
        before_all(proxies.vllm_router(work), consistent),
        before_all(proxies.litellm(work), affine),
    ]


def ours(hosts: Sequence[str], port: int, *, admits: bool = True) -> Installed:
    """As in its pod, before the replicas of a model server (components/api_server.py)."""

    def start(_: str, directory: Path, listen: int) -> tuple[list[str], Mapping[str, str]]:
        (directory / "keys").write_text(KEY)
        route: dict[str, object] = {"url": f"http://{names.FLEET}:{port}", "max_in_flight": SLOTS}
        if admits:
            route |= {"slots": SLOTS, "cached_tokens": CACHE_MIB * 2**20 // _KV_BYTES}
        settings = {"HOST": "127.0.0.1", "PORT": listen, "METRICS_PORT": free_port(), "KEYS_FILE": directory / "keys"}
        settings |= {"ROUTES": json.dumps({MODEL: route}), "QUEUE_S": 60, "DRAIN_DELAY_S": 0, "DRAIN_S": 0}
        env = {f"API_SERVER_{name}": str(value) for name, value in settings.items()}
        return [sys.executable, "-m", "api_server"], env | names.Name(directory, *hosts).environment

    return Installed("ours" if admits else "ours without admission", metadata.version("aiohttp"), start, "/ready")


def serve(stack: ExitStack, work: Path, store: Path, hosts: Sequence[str], port: int) -> None:
    """The servers, new ones, until the stack is closed."""
    settings = {"PORT": port, "MODELS_DIR": store, "MODEL": "agents:1", "MODEL_ID": MODEL, "CONTEXT_LENGTH": CONTEXT, "PARALLEL": SLOTS}
    settings |= {"PROMPT_CACHE_MIB": CACHE_MIB, "MAX_QUEUE": 256, "THREADS": 1}
    processes = []
    for host in hosts:
        directory = work / f"server-{host}"
        directory.mkdir(exist_ok=True)
        env = {f"MODEL_SERVER_{name}": str(value) for name, value in {**settings, "HOST": host}.items()}
        argv = [sys.executable, "-m", "model_server"]
        processes.append(stack.enter_context(started(argv, {"PATH": os.environ["PATH"], **env}, directory, cwd=ROOT)))
    for host, process in zip(hosts, processes, strict=True):
        wait_for(f"http://{host}:{port}/ready", process, work / f"server-{host}" / "log")


def measured(sizes: Sizes, work: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """For each number of agents, what each gateway made of it; and the gateways' versions."""
    weights = tiny_gguf.make(work / "model.gguf", "tick tock ", loop=True, layers=LAYERS, ff=FEED_FORWARD, context=CONTEXT)
    store, port = work / "models", free_port()
    gguf.add("agents:1", weights, store)
    hosts = [f"127.0.0.{number + 1}" for number in range(SERVERS)]
    servers = [f"http://{host}:{port}" for host in hosts]
    gateways = [ours(hosts, port), ours(hosts, port, admits=False), *peers(work, servers)]
    results: dict[str, Any] = {}
    for agents in sizes.agents:
        results[f"{agents} agents"] = found = dict[str, Any]()
        for gateway in gateways:
            print(f"agents: {agents} before {gateway.name}", file=sys.stderr, flush=True)
            with ExitStack() as stack, tempfile.TemporaryDirectory(dir=work) as directory:
                Path(directory).chmod(0o755)
                serve(stack, work, store, hosts, port)
                proxy = stack.enter_context(gateway.running(servers[0], Path(directory)))
                found[gateway.name] = asyncio.run(load(proxy.server.url, agents, sizes, servers))
                print(f"agents: {found[gateway.name]}", file=sys.stderr, flush=True)
    return results, {gateway.name: gateway.version for gateway in gateways}


def ratios(results: Mapping[str, Any], than: str = "") -> dict[str, float]:
    """Turns of ours, as a multiple of those of another; without a name, of the best of the others."""
    found: dict[str, float] = {}
    for agents, each in results.items():
        others = [figures["turns_a_minute"] for name, figures in each.items() if name == than or not (than or name.startswith("ours"))]
        found[agents] = round(each["ours"]["turns_a_minute"] / max(others), 2) if any(others) else 0.0
    return found


def main(arguments: Sequence[str]) -> int:
    sizes = SMALL if list(arguments) == ["small"] else FULL
    end_with_us()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        work.chmod(0o755)
        results, versions = measured(sizes, work)
    shape = {"servers": SERVERS, "slots": SLOTS, "cache_mib": CACHE_MIB, "context": CONTEXT, "layers": LAYERS, "feed_forward": FEED_FORWARD}
    shape |= {"shared": SHARED, "helped_after": HELP_AFTER, "helper_turns": HELP_TURNS, "summary_after": SUMMARY_AFTER, "summary": SUMMARY}
    shape |= {"prompt": PROMPT, "growth": GROWTH, "turns": TURNS, "answer": ANSWER, "tools_s": TOOLS_S}
    record = beside("python -m bench.agents", load_before, {"xllamacpp": metadata.version("xllamacpp"), **versions}) | {
        "sizes": {**dataclasses.asdict(sizes), **shape},
        "results": results,
        "turns_by_those_of_the_best_other": ratios(results),
        "turns_by_those_of_the_least_busy": ratios(results, LEAST_BUSY),
    }
    keep("agents", record, whole=sizes is FULL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
