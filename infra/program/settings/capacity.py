"""How many conversations a stack keeps warm, by which preview, outputs and the memory rules count.

A conversation is warm while a server holds the state of its prompt, so that its next turn reads only what is new. Each slot of a server
holds one, of contextLength tokens at most. Host memory (promptCache) holds more, whose slots went to others:

    servers x (slots + promptCache / (kvBytesPerToken x contextLength), rounded down)

conversations of full length, and more of shorter ones.
"""

from dataclasses import dataclass

from infra.program.settings.model_servers import ModelServerSettings
from infra.program.settings.models import ModelSettings
from infra.program.settings.section import quantity
from infra.program.settings.sections import Sections

FILL = 0.9
"""Part of a pod's memory that weights, KV cache and old prompts may take, where the last are not said."""


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
    """Bytes of one server's host memory."""

    @property
    def kv_bytes(self) -> int:
        """Of all slots of one server."""
        return self.kv_bytes_per_token * self.context_length * self.slots

    @property
    def conversations(self) -> int:
        """Warm ones, each as long as a slot."""
        return self.servers * (self.slots + int(self.prompt_cache // (self.kv_bytes_per_token * self.context_length)))

    @property
    def cached_tokens(self) -> int:
        """Of one server, beside those in its slots."""
        return int(self.prompt_cache // self.kv_bytes_per_token)

    @property
    def tokens(self) -> int:
        """Warm ones at most: of conversations that fill their slots."""
        return self.servers * (self.slots * self.context_length + self.cached_tokens)


def of_fleet(model: ModelSettings, settings: Sections) -> Capacity:
    """A model on the Ollama servers."""
    fleet = settings.fleet
    return Capacity(
        servers=model.replicas or fleet.replicas,
        slots=fleet.num_parallel,
        context_length=settings.context_length(model),
        kv_bytes_per_token=model.kv_bytes_per_token,
        prompt_cache=quantity(fleet.prompt_cache),
    )


def of_server(server: ModelServerSettings, settings: Sections) -> Capacity:
    """The model of a model server, which is one of `models`."""
    model = settings.model(server.model)
    in_slots = model.kv_bytes_per_token * server.context_length * server.parallel
    left = FILL * quantity(server.resources.memory) - quantity(model.size) - in_slots
    return Capacity(
        servers=server.replicas,
        slots=server.parallel,
        context_length=server.context_length,
        kv_bytes_per_token=model.kv_bytes_per_token,
        prompt_cache=max(0, min(in_slots, left)) if server.prompt_cache is None else quantity(server.prompt_cache),
    )


def capacities(settings: Sections) -> dict[str, Capacity]:
    """By the id that clients name, in the order of the outputs."""
    return {
        **{model.name: of_fleet(model, settings) for model in settings.models},
        **{server.model_id: of_server(server, settings) for server in settings.model_servers},
    }
