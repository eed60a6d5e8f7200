"""Agents at work while each tier of the cache layer fails in turn: that costs speed, and never an answer.

Real engines with made-up models, the real cache server, and the gateway. An agent's turn is a chat of a growing history, as a stream, whole,
or by the exact answers of before; and embeddings. Each is compared with what was said before anything failed.
"""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import openai
import pytest
import redis
from gguf import PoolingType
from openai.types.chat import ChatCompletionMessageParam

from model_sync import gguf
from tests import tiny_gguf
from tests.service import names
from tests.service.agents import AtWork
from tests.service.conftest import KEY, PASSWORD, SCRIPT, as_user, running_valkey, start_api_server, start_model_server
from tests.service.processes import Service, free_port, talking_nonsense
from tests.service.test_named_keys import wait_until

AGENTS, LASTS_S = 4, 4.0
CHAT, EMBED = "tiny:1", "embed:1"


class Layer:
    """Two model servers that keep conversations in memory and on a disk, one for embeddings, the cache server, and a gateway."""

    def __init__(self, stack: ExitStack, work: Path) -> None:
        self.work, self.stack, self.port = work, stack, free_port()
        self._store, self._servers_port = work / "models", free_port()
        gguf.add(CHAT, tiny_gguf.make(work / "chat.gguf", SCRIPT, context=4096), self._store)
        gguf.add(EMBED, tiny_gguf.make(work / "embed.gguf", SCRIPT, pooling=PoolingType.MEAN), self._store)
        self.cache: subprocess.Popen[bytes] = stack.enter_context(running_valkey(work, self.port))
        self.servers = {host: self.start_server(host) for host in ("127.0.0.1", "127.0.0.2")}
        (work / "embed").mkdir()
        embeds = start_model_server(stack, self._store, work / "embed", EMBED)
        url = f"http://{names.FLEET}:{self._servers_port}"
        routes: dict[str, dict[str, object]] = {
            CHAT: {"url": url, "max_in_flight": 18, "slots": 2, "cached_tokens": 16384},
            EMBED: {"url": embeds.url, "max_in_flight": 8},
        }
        found = names.Name(work, *self.servers).environment
        agreed = as_user(f"redis://127.0.0.1:{self.port}/0", "api-server", work)
        self.gateway = start_api_server(stack, work, routes, "/ready", found, 0, QUEUE_S="30", HOLD_S="30", **agreed)

    def stop_cache(self) -> None:
        self.cache.kill()
        self.cache.wait()

    def start_cache(self) -> None:
        """In the place of the one before."""
        self.stop_cache()
        self.cache = self.stack.enter_context(running_valkey(self.work, self.port))

    def kept(self, host: str) -> Path:
        """Conversations of a server that drained."""
        return self.work / host / "kept"

    def start_server(self, host: str) -> Service:
        (self.work / host).mkdir(exist_ok=True)
        # Memory for one old prompt or two: they are evicted again and again.
        env = {"CONTEXT_LENGTH": "4096", "PARALLEL": "2", "MAX_QUEUE": "16", "PROMPT_CACHE_MIB": "1", "DRAIN_DELAY_S": "0"}
        env |= {
            "KEPT_DIR": str(self.kept(host)),
            "KEPT_MIB": "64",
            **as_user(f"redis://127.0.0.1:{self.port}/0", "model-server", self.work),
        }
        args = (self.stack, self._store, self.work / host, CHAT, "/ready", None)
        return start_model_server(*args, HOST=host, PORT=str(self._servers_port), **env)

    def drained(self, host: str) -> None:
        self.servers[host].process.send_signal(signal.SIGTERM)
        assert self.servers[host].ended() == 0

    def restarted(self, host: str) -> None:
        self.servers[host] = self.start_server(host)

    @contextlib.contextmanager
    def administered(self) -> Iterator[redis.Redis]:
        with redis.Redis(port=self.port, password=PASSWORD) as client:
            yield client


class Agents(AtWork):
    def __init__(self, gateway: Service) -> None:
        super().__init__(gateway.url, KEY, AGENTS)
        self._embeddings = [self._embedded(number) for number in range(AGENTS)]

    def _embedded(self, number: int) -> list[list[float]]:
        texts = [f"part {part} of agent {number}" for part in range(3)]
        return [each.embedding for each in self.client.embeddings.create(model=EMBED, input=texts).data]

    def _said(self, messages: list[ChatCompletionMessageParam], turn: int) -> str:
        given: dict[str, Any] = {"model": CHAT, "messages": messages, "max_tokens": 64, "temperature": 0}
        if turn % 3 == 0:
            return self.streamed(given)
        headers = {"X-Cache": "exact"} if turn % 3 == 1 else {}
        answer = self.client.chat.completions.with_raw_response.create(**given, extra_headers=headers)
        self.counts[f"exact answers: {answer.headers.get('x-cache')}"] += bool(headers)
        return answer.parse().choices[0].message.content or ""

    def work(self, number: int) -> None:
        start: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": f"You are agent {number}. " * 20},
            {"role": "user", "content": "Go."},
        ]
        messages, turn = start, 0
        while not self.ended.is_set():
            try:
                said = self._said(messages, turn).strip()
                if said != SCRIPT:
                    self.failures.append(f"agent {number}, turn {turn}: {said[:80]!r}")
                if self._embedded(number) != self._embeddings[number]:
                    self.failures.append(f"agent {number}, turn {turn}: other numbers")
            except openai.OpenAIError as error:
                self.failures.append(f"agent {number}, turn {turn}: {error!r}")
            turn += 1
            self.counts["turns"] += 1
            more: list[ChatCompletionMessageParam] = [{"role": "assistant", "content": SCRIPT}, {"role": "user", "content": "On."}]
            # The second turn of three has the same question again.
            messages = start if turn % 3 == 0 else [*messages, *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    with ExitStack() as stack:
        yield Layer(stack, tmp_path_factory.mktemp("layer"))


@pytest.fixture
def layer(made: Layer) -> Iterator[Layer]:
    yield made
    made.start_cache()


def stopped(layer: Layer) -> None:
    """It takes connections, and says nothing; then it goes on."""
    layer.cache.send_signal(signal.SIGSTOP)
    time.sleep(LASTS_S)
    layer.cache.send_signal(signal.SIGCONT)


def killed(layer: Layer) -> None:
    layer.stop_cache()
    time.sleep(LASTS_S)
    layer.start_cache()


def another_program(layer: Layer) -> None:
    layer.stop_cache()
    with talking_nonsense(layer.port):
        time.sleep(LASTS_S)
    layer.start_cache()


def emptied(layer: Layer) -> None:
    with layer.administered() as cache:
        for _ in range(40):
            cache.flushall()
            time.sleep(LASTS_S / 40)


def full(layer: Layer) -> None:
    with layer.administered() as cache:
        cache.config_set("maxmemory-policy", "noeviction")
        cache.config_set("maxmemory", "1")
        time.sleep(LASTS_S)


def another_version(layer: Layer) -> None:
    """One that knows none of the commands which are wanted of it."""
    with layer.administered() as cache:
        for role in ("api-server", "model-server"):
            cache.execute_command("ACL", "SETUSER", role, "-@all")
            cache.execute_command("CLIENT", "KILL", "USER", role)
        time.sleep(LASTS_S)


def corrupt(layer: Layer) -> None:
    """Each value is damaged in its middle, cut off, or another one's."""
    with layer.administered() as cache:
        for count in range(40):
            before = b""
            for name in cast(list[bytes], cache.keys("*")):
                with contextlib.suppress(redis.ResponseError):
                    value = cast(bytes | None, cache.get(name)) or b""
                    half = len(value) // 2
                    cache.set(name, (value[:half] + b"\x00" + value[half + 1 :], value[:half], before)[count % 3])
                    before = value
            time.sleep(LASTS_S / 40)


def damaged_files(layer: Layer) -> None:
    """Of a server that drained, before the next one reads them."""
    for host in layer.servers:
        layer.drained(host)
        kept = list(layer.kept(host).glob("*.slot"))
        for path in kept:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        layer.restarted(host)
        time.sleep(LASTS_S / 2)


def no_disk(layer: Layer) -> None:
    for host in layer.servers:
        layer.drained(host)
        shutil.rmtree(layer.kept(host))
        layer.kept(host).write_text("no directory")
        layer.restarted(host)
        time.sleep(LASTS_S / 2)
        layer.kept(host).unlink()


def lost_memory(layer: Layer) -> None:
    """What a server had of conversations goes with its process."""
    for host in layer.servers:
        layer.servers[host].process.kill()
        layer.servers[host].ended()
        layer.restarted(host)
        time.sleep(LASTS_S / 2)


FAULTS: list[Callable[[Layer], None]] = [
    *(stopped, killed, another_program, emptied, full, another_version, corrupt),
    *(damaged_files, no_disk, lost_memory),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.replace("_", " "))
def test_it_costs_speed_and_no_answer(layer: Layer, fault: Callable[[Layer], None]) -> None:
    with Agents(layer.gateway) as agents:
        wait_until(lambda: agents.counts["exact answers: hit"], 60)
        before = agents.counts["turns"]
        fault(layer)
        during = agents.counts["turns"]
        wait_until(lambda: agents.counts["turns"] > during + AGENTS, 60)
    assert agents.failures == []
    assert during > before, "they were at work while it lasted"
    assert all(service.process.poll() is None for service in (layer.gateway, *layer.servers.values()))
