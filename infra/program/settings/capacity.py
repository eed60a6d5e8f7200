"""How many conversations a stack keeps warm, and how many turns it answers, by which preview, outputs and the memory rules count.

A conversation is warm while a server holds the state of its prompt, so that its next turn reads only what is new. Each slot of a server
holds one, of contextLength tokens at most. Host memory (promptCache) holds those whose slots went to others:

    servers x (slots - 1 + promptCache / (kvBytesPerToken x contextLength), rounded down, at least 1)

conversations of full length, and more of shorter ones. One less than there is memory for: for a conversation that comes back, llama.cpp
puts that of the slot that it takes into host memory, and makes room there, before it takes the other one out
(tests/service/test_warm_slots.py). vLLM has one memory for all, on its GPUs, of which slots are no fixed part.

Where the speed of a server was measured, a turn of such a conversation takes a slot for as long as the new part of its prompt is read and
the answer is written; and a server reads one prompt after the other, for that is what all of its compute is for:

    servers x min(1 / read, slots / (read + write))

turns a second. The prompt is that of a turn of a coding agent, or what contextLength has room for.
"""

from dataclasses import dataclass

from infra.program.settings import server_memory
from infra.program.settings.model_servers import ModelServerSettings
from infra.program.settings.models import ModelSettings
from infra.program.settings.section import Speed, quantity
from infra.program.settings.sections import Sections

FILL = 0.9
"""Part of a pod's memory that weights, KV cache and old prompts may take, where the last are not said."""
PROMPT, NEW, ANSWER = 150_000, 0.05, 500
"""A turn of a coding agent: tokens of its prompt, the part of them that its server has not read for the turn before, tokens of its answer.
It is the work that the gateway's rules are made for (docs/gateway.md#which-server)."""


@dataclass(frozen=True)
class Capacity:
    """Of one model, on all servers that have it."""

    servers: int
    slots: int
    """Requests that one server generates at once."""
    context_length: int
    """Tokens of one slot."""
    kv_bytes_per_token: int
    prompt_cache: float
    """Bytes of one server for old prompts: of its host memory, or of vLLM's KV cache."""
    one_memory: bool = False
    """Whether slots are parts of the same memory as old prompts, as vLLM's are."""
    speed: Speed | None = None
    """Of one server."""
    fewest: int | None = None
    """Servers at least, where the activator scales them up to `servers`."""

    @property
    def kv_bytes(self) -> int:
        """Of all slots of one server."""
        return self.kv_bytes_per_token * self.context_length * self.slots

    @property
    def conversations(self) -> int:
        """Warm ones, each as long as a slot."""
        return self.servers * (self.in_slots - 1 + max(1, self.cached_tokens // self.context_length))

    @property
    def in_slots(self) -> int:
        """Conversations that one server holds in any case."""
        return 1 if self.one_memory else self.slots

    @property
    def cached_tokens(self) -> int:
        """Of one server, in what it has for old prompts."""
        return int((self.prompt_cache + (self.kv_bytes if self.one_memory else 0)) // self.kv_bytes_per_token)

    @property
    def tokens(self) -> int:
        """Warm ones at most: of conversations that fill their slots."""
        return self.servers * ((self.in_slots - 1) * self.context_length + max(self.context_length, self.cached_tokens))

    @property
    def turns_per_hour_each(self) -> int | None:
        """Of warm conversations, that one server answers at most; None where its speed was not measured."""
        if self.speed is None:
            return None
        read_s = NEW * min(PROMPT, self.context_length - ANSWER) / self.speed.read
        write_s = ANSWER / self.speed.write
        return round(3600 * min(1 / read_s, self.slots / (read_s + write_s)))

    @property
    def turns_per_minute(self) -> float | None:
        """Of all servers."""
        return None if self.turns_per_hour_each is None else round(self.servers * self.turns_per_hour_each / 60, 1)


def of_fleet(model: ModelSettings, settings: Sections) -> Capacity:
    """A model on the Ollama servers."""
    fleet = settings.fleet
    return Capacity(
        servers=model.replicas or fleet.replicas,
        slots=fleet.num_parallel,
        context_length=settings.context_length(model),
        kv_bytes_per_token=model.kv_bytes_per_token,
        prompt_cache=quantity(fleet.prompt_cache),
        speed=model.speed,
        fewest=None if fleet.scaling is None else fleet.scaling.min,
    )


def of_server(server: ModelServerSettings, settings: Sections) -> Capacity:
    """The model of a model server, which is one of `models`."""
    model = settings.model(server.model)
    return Capacity(
        servers=server.replicas,
        slots=server.parallel,
        context_length=server.context_length,
        kv_bytes_per_token=server_memory.kv_bytes_per_token(server, model),
        prompt_cache=_kept(server, model, settings),
        one_memory=server.engine == "vllm",
        speed=server.speed,
        fewest=None if server.scale is None else server.scale.min,
    )


def _kept(server: ModelServerSettings, model: ModelSettings, settings: Sections) -> float:
    if server.engine == "vllm":
        return server_memory.kv_left_over(server, model, settings.gpu) + offloaded(server)
    if server.prompt_cache is not None:
        return quantity(server.prompt_cache)
    in_slots = model.kv_bytes_per_token * server.context_length * server.parallel
    on_host = 0 if server.gpus else in_slots
    return max(0.0, min(in_slots, FILL * quantity(server.resources.memory) - quantity(model.size) - on_host))


def offloaded(server: ModelServerSettings) -> float:
    """Bytes of host memory for old prompts of vLLM."""
    return quantity(server.prompt_cache) if server.engine == "vllm" and server.prompt_cache is not None else 0.0


def capacities(settings: Sections) -> dict[str, Capacity]:
    """By the id that clients name, in the order of the outputs."""
    return {
        **{model.name: of_fleet(model, settings) for model in settings.fleet_models},
        **{server.model_id: of_server(server, settings) for server in settings.model_servers},
    }
