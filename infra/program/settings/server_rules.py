"""Rules between the model servers and the other sections, one line a problem: `<path>: got X, want Y; do Z`."""

from collections.abc import Iterator

from components.model_server import COMPILED
from infra.program.settings import capacity, server_memory
from infra.program.settings.images import VLLM_IMAGE
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
        if server.model not in settings.model_names:
            continue
        compiled = quantity(COMPILED) if server.engine == "vllm" else 0.0
        if (need := quantity(settings.model(server.model).size) / HOT_FILL + compiled) > quantity(size):
            where = f"modelServers.{index}.localSize" if server.local_size else "storage.hot.size"
            more = f", and {COMPILED} for what vLLM compiles" if compiled else ""
            want = f"want at least {in_gib(need)} for model server {server.name}, its model and a tenth more{more}"
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


def engines(settings: Sections) -> Iterator[str]:
    """What each engine can run, and on which GPUs."""
    gpu = settings.gpu
    wanted = {"llama-cpp": "gguf", "vllm": "safetensors"}
    for index, server in enumerate(settings.model_servers):
        path = f"modelServers.{index}"
        found = next((model for model in settings.models if model.name == server.model), None)
        if found is not None and found.format != wanted[server.engine]:
            other = next(engine for engine, form in wanted.items() if form == found.format)
            yield (
                f"{path}.model: got {server.model}, of format {found.format}, with engine {server.engine}, want {wanted[server.engine]}; "
                f"choose such a model, or engine {other}"
            )
        if server.gpus and not gpu.enabled:
            yield f"{path}.gpus: got {server.gpus}, want 0 while gpu.enabled is false; enable gpu or set it to 0"
        if server.gpus > 1 and gpu.sharing.strategy != "none":
            yield f"{path}.gpus: got {server.gpus}, want at most 1 with gpu.sharing {gpu.sharing.strategy}; take larger shares"
        if server.engine == "vllm" and gpu.sharing.strategy in ("time-slicing", "mps"):
            # It takes its part of the memory that the GPU says it has, and measures while it starts what others on the GPU change.
            want = "want none or mig: vLLM plans for a GPU or a partition of its own"
            yield f"{path}.engine: got vllm with gpu.sharing {gpu.sharing.strategy}, {want}; change gpu.sharing, or use llama-cpp"
    images, runs_vllm = settings.images, any(server.engine == "vllm" for server in settings.model_servers)
    if runs_vllm and images.builder == "prebuilt" and VLLM_IMAGE not in images.refs:
        want = "want a reference with a model server of engine vllm; add it, or use llama-cpp"
        yield f"images.refs.{VLLM_IMAGE}: got nothing, {want}"


def scale(settings: Sections) -> Iterator[str]:
    """Bounds between which the activator may scale."""
    for index, server in enumerate(settings.model_servers):
        if server.scale is not None and server.scale.min > server.replicas:
            path = f"modelServers.{index}"
            yield f"{path}.scale.min: got {server.scale.min}, want at most {path}.replicas {server.replicas}; lower it, or raise that"


def quota(settings: Sections) -> Iterator[str]:
    """GPUs of all servers of models together."""
    fleet, most = settings.fleet, settings.governance.gpu_quota
    of_servers = settings.serving_gpus - fleet.replicas * fleet.gpus_per_pod
    if settings.serving_gpus > most:
        more = f", and {of_servers} of modelServers" if of_servers else ""
        yield (
            f"fleet: got {settings.serving_gpus} GPUs (replicas {fleet.replicas} x gpusPerPod {fleet.gpus_per_pod}{more}), want at most "
            f"governance.gpuQuota {most}; raise the quota or lower the fleet"
        )


def memory(settings: Sections) -> Iterator[str]:
    """What each server must hold fits its GPUs and its pod."""
    for index, server in enumerate(settings.model_servers):
        if server.model not in settings.model_names:
            continue
        path, model, found = f"modelServers.{index}", settings.model(server.model), capacity.of_server(server, settings)
        if server.gpus and settings.gpu.enabled:
            yield from server_memory.gpu_problems(path, server, model, settings.gpu)
        kv = 0 if server.gpus else found.kv_bytes
        prompts = capacity.offloaded(server) if server.engine == "vllm" else found.prompt_cache
        yield from server_memory.host_problems(path, server, model, kv, prompts)


def cache(settings: Sections) -> Iterator[str]:
    """What the section itself cannot have, whatever the engines are."""
    cache = settings.cache
    if quantity(cache.max_memory) >= quantity(cache.resources.memory):
        yield (
            f"cache.maxMemory: got {cache.max_memory}, want less than cache.resources.memory "
            f"{cache.resources.memory}; leave a tenth for the server itself"
        )
    if cache.compression:
        loses = "keys and values shrink by a tenth at most, and unpack slower than a disk reads them (docs/cache.md)"
        yield f"cache.compression: got true, want false: {loses}; remove it, or set kvCacheDtype of a model server with vLLM"
    if cache.max_size is not None and cache.eviction_policy not in ("lru", "allkeys-lru"):
        yield f"cache.evictionPolicy: got {cache.eviction_policy} with maxSize, want lru, which all tiers have; set that"
    if cache.shared_cache and cache.max_size is None:
        yield "cache.maxSize: got nothing with sharedCache, want the size of the shared tier; set it"


def tier_claims(settings: Sections) -> list[float]:
    """Bytes of each claim that cache.maxSize makes."""
    cache = settings.cache
    if cache.max_size is None:
        return []
    shares = [cache.shared_cache and server.engine == "vllm" for server in settings.model_servers]
    counts = [1 if shared else server.replicas for shared, server in zip(shares, settings.model_servers, strict=True)]
    return [quantity(cache.max_size)] * sum(counts)


def keepers(settings: Sections) -> int:
    """Sidecars that bound vLLM's tiers."""
    return sum(server.replicas for server in settings.model_servers if server.engine == "vllm" and settings.cache.max_size is not None)


def tiers(settings: Sections) -> Iterator[str]:
    """What `cache` says of the disks of model servers."""
    cache, vllm = settings.cache, [index for index, server in enumerate(settings.model_servers) if server.engine == "vllm"]
    if cache.shared_cache and not vllm:
        want = "want a model server with vLLM: llama.cpp's conversations are of one process alone"
        yield f"cache.sharedCache: got true, {want}; remove it, or use vllm"
    if cache.shared_cache and settings.storage.shared.claim is not None:
        want = "want a class in storage.shared, by which claims for the tiers can be made"
        yield f"cache.sharedCache: got true with storage.shared.claim, {want}; name a class, or remove sharedCache"
    for index in vllm if cache.max_size is not None else ():
        if settings.model_servers[index].prompt_cache is None:
            want = "want host memory, through which vLLM's blocks come to the disk and back"
            yield f"modelServers.{index}.promptCache: got nothing with cache.maxSize, {want}; set it"
