"""Rules between the model servers and the other sections, one line a problem: `<path>: got X, want Y; do Z`."""

from collections.abc import Iterator

from infra.program.settings import capacity
from infra.program.settings.model_servers import ModelServerSettings
from infra.program.settings.section import in_gib, quantity
from infra.program.settings.sections import Sections

HOT_FILL = 0.9
"""Part of a node-local volume that models may fill: a new version arrives beside the old one, and a full disk evicts pods."""


def local_size(server: ModelServerSettings, settings: Sections) -> str:
    """Size of the claim of each of its replicas."""
    return server.local_size or settings.storage.hot.size


def storage(settings: Sections) -> Iterator[str]:
    """The model fits into the server's own claim."""
    for index, server in enumerate(settings.model_servers):
        size = local_size(server, settings)
        if server.model in settings.model_names and (need := quantity(settings.model(server.model).size) / HOT_FILL) > quantity(size):
            where = f"modelServers.{index}.localSize" if server.local_size else "storage.hot.size"
            want = f"want at least {in_gib(need)} for model server {server.name}, its model and a tenth more"
            yield f"{where}: got {size}, {want}; raise it, or set modelServers.{index}.localSize"


def holders(settings: Sections) -> Iterator[str]:
    """Every model is on some server, and the fleet has one."""
    if not settings.fleet_models:
        yield "models: got none that the fleet can hold, want one at least; add one in one GGUF file, or set no replicas of 0"
    for index, model in enumerate(settings.models):
        if not model.in_fleet and model.name not in (server.model for server in settings.model_servers):
            got = f"models.{index}: got {model.name} on no replica of the fleet"
            yield f"{got}, want a server that has it; add it to modelServers, or remove it"


def names(settings: Sections) -> Iterator[str]:
    """Names and ids that differ, and models that there are."""
    models, servers = settings.model_names, settings.model_servers
    taken = [server.name for server in servers]
    if not servers:
        yield "modelServers: got none, want one at least; add one (docs/configuration.md)"
    for index, server in enumerate(servers):
        path = f"modelServers.{index}"
        if server.name in taken[:index]:
            yield f"{path}.name: got {server.name} again, want each name once; choose another"
        if server.name == "metrics" or (server.name.endswith("-metrics") and server.name.removesuffix("-metrics") in taken):
            # model-server-NAME-metrics is the Service by which Prometheus finds the pods of NAME.
            yield f"{path}.name: got {server.name}, want one that names no Service of another model server; choose another"
        if server.model not in models:
            yield f"{path}.model: got {server.model}, want one of models {', '.join(models)}; add it there"
        if server.model_id in (model.name for model in settings.fleet_models):
            yield f"{path}.modelId: got {server.model_id}, want an id that no model has; choose another"
        if server.model_id in (other.model_id for other in servers[:index]):
            yield f"{path}.modelId: got {server.model_id} again, want an id of its own; for more of one server, raise its replicas"


def memory(settings: Sections) -> Iterator[str]:
    """A model server has no GPU: its weights, KV cache and old prompts are all in its memory."""
    for index, server in enumerate(settings.model_servers):
        if server.model not in settings.model_names:
            continue
        path, found = f"modelServers.{index}", capacity.of_server(server, settings)
        weights = quantity(settings.model(server.model).size)
        need = weights + found.kv_bytes + found.prompt_cache
        if need > quantity(server.resources.memory):
            yield (
                f"{path}.resources.memory: got {server.resources.memory}, want at least {in_gib(need)} (weights {in_gib(weights)}, "
                f"promptCache {in_gib(found.prompt_cache)}, KV cache {in_gib(found.kv_bytes)}); raise it, or lower {path}.contextLength"
            )
