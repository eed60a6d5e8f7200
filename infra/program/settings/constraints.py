"""Rules between sections. Each says, by path, what is wrong and what to do: `<path>: got X, want Y; do Z`.

GPU memory. All models stay loaded, so one server needs, with what its GPUs must hold for each model:

    size + kvBytesPerToken x contextLength x numParallel + 1.5 GiB x gpusPerPod  <=  gpusPerPod x memory of one unit

where a unit is a whole GPU, an equal share, or a MIG partition (`GpuSettings.unit_memory`).
"""

import re
from collections.abc import Iterator

from components.cache_tier import KEEPER_RESOURCES
from components.contract import ARCHITECTURE
from components.model_server import NODE_DISK
from components.models import FOLLOWER_RESOURCES
from components.ollama_agent import AGENT_RESOURCES, PROBE_RESOURCES
from infra.program.settings import capacity, external, server_rules
from infra.program.settings.cluster import verifier_namespace
from infra.program.settings.images import PROMETHEUS_IMAGE
from infra.program.settings.models import ModelSettings, is_address
from infra.program.settings.section import MIB, in_gib, quantity
from infra.program.settings.sections import Sections
from infra.program.settings.server_memory import LLAMA_CPP_WORKSPACE
from model_sync.catalog import is_held_by

EPHEMERAL_DEFAULT = 64 * MIB
"""Disk that the namespace's LimitRange requests for a container without a request for it. None of our containers has one."""
SIDECARS = (FOLLOWER_RESOURCES, AGENT_RESOURCES)
"""Resources of the containers beside each Ollama server in its pod."""
_LABEL = 63
"""Most characters of a namespace's name, and of a Service's (RFC 1123)."""
_ONE_AT_A_TIME = re.compile(r"llama3\.2-vision|qwen3-vl|qwen3\.[56]|qwen3-next|lfm2|nemotron-?(h|3)", re.IGNORECASE)
"""Names of the families that Ollama serves one request at a time.
Source: ollama v0.32.15, server/sched.go (mllama, qwen3vl, qwen35, qwen3next, lfm2, nemotron_h)."""


def problems(settings: Sections) -> list[str]:
    """Every rule that the sections break together."""
    checks = (
        _names,
        _images,
        _models,
        server_rules.names,
        server_rules.engines,
        server_rules.quota,
        server_rules.holders,
        server_rules.tiers,
        _aliases,
        _delivery,
        _contexts,
        _scale,
        server_rules.scale,
        _gpus,
        _gpu_memory,
        _host_memory,
        server_rules.memory,
        server_rules.storage,
        _storage,
        server_rules.cache,
        _quota,
    )
    found = [line for check in checks for line in check(settings)] + list(external.problems(settings.external_pools, settings.ids))
    return found + list(_production(settings)) if settings.governance.production else found


def gpu_bytes(model: ModelSettings, settings: Sections) -> float:
    """GPU memory that one server needs for `model`, by the formula above."""
    return quantity(model.size) + capacity.of_fleet(model, settings).kv_bytes + LLAMA_CPP_WORKSPACE * settings.fleet.gpus_per_pod


def _names(settings: Sections) -> Iterator[str]:
    """All other names that are made of settings fit by the limits of the settings (`tests/component/test_fit.py`)."""
    namespace = settings.cluster.namespace
    made = verifier_namespace(namespace)
    if settings.images.trust is not None and len(made) > _LABEL:
        want = f"want at most {_LABEL - len(made) + len(namespace)} with images.trust, whose verifier lives in {made}"
        yield f"cluster.namespace: got {len(namespace)} characters, {want}; choose a shorter one"


def _images(settings: Sections) -> Iterator[str]:
    images = settings.images
    if settings.monitoring.prometheus is not None and images.builder == "prebuilt" and PROMETHEUS_IMAGE not in images.refs:
        want = "want a reference with monitoring.prometheus; add it, or remove monitoring.prometheus"
        yield f"images.refs.{PROMETHEUS_IMAGE}: got nothing, {want}"
    placed = {f"workloads.{name}": each for name, each in settings.workloads.items()}
    placed |= {f"modelServers.{index}.placement": each.placement for index, each in enumerate(settings.model_servers) if each.placement}
    for path, each in placed.items():
        got = each.node_selector.get(ARCHITECTURE, images.architecture)
        if images.architecture not in (None, got):
            want = f"want {images.architecture}, which images.platform stands for; correct one of them"
            yield f"{path}.nodeSelector.{ARCHITECTURE}: got {got}, {want}"


def _scale(settings: Sections) -> Iterator[str]:
    fleet = settings.fleet
    wanted = {"autoscaled": fleet.autoscaled, "scaleToZero": fleet.scale_to_zero is not None, "scale": fleet.scale is not None}
    owner, *others = [name for name, is_wanted in wanted.items() if is_wanted] or [None]
    for other in others:
        got = f"got {'true' if fleet.autoscaled else 'a section'} with {other}"
        yield f"fleet.{owner}: {got}, want one owner of the number of servers; remove one of them"
    if fleet.scale is not None and fleet.scale.min > fleet.replicas:
        yield f"fleet.scale.min: got {fleet.scale.min}, want at most fleet.replicas {fleet.replicas}; lower it, or raise that"
    for index, model in enumerate(settings.models):
        if owner and model.replicas:
            # The catalog gives each model to numbered replicas. When replicas come and go, some models would be on no replica.
            yield (
                f"models.{index}.replicas: got {model.replicas} with fleet.{owner}, want every model on every replica where their number "
                f"changes by itself; leave it out, or remove fleet.{owner}"
            )


def _models(settings: Sections) -> Iterator[str]:
    names = settings.model_names
    if len(set(names)) != len(names):
        yield f"models: got {', '.join(names)}, want each name once; remove the repetition"
    if not settings.fleet_models:
        yield f"models: got {', '.join(names)}, none of format gguf, want one at least, which the fleet serves; add one"


def _aliases(settings: Sections) -> Iterator[str]:
    known = ", ".join(settings.ids)
    for name, alias in settings.aliases.items():
        # Ollama's own API takes a name without a tag for `latest`.
        if {name, f"{name}:latest"} & set(settings.ids):
            yield f"aliases.{name}: got the name of a model, want one that no model has; choose another"
        for key, model in (("model", alias.model), ("next", alias.next)):
            if model is not None and model not in settings.ids:
                yield f"aliases.{name}.{key}: got {model}, want one of {known}; correct it, or add the model"


def _delivery(settings: Sections) -> Iterator[str]:
    fleet = settings.fleet
    for index, model in enumerate(settings.models):
        path = f"models.{index}"
        if model.in_fleet and settings.context_length(model) > fleet.context_length:
            yield f"{path}.contextLength: got {model.context_length}, want at most fleet.contextLength {fleet.context_length}; raise that"
        if (model.replicas or 1) > fleet.replicas:
            yield f"{path}.replicas: got {model.replicas}, want at most fleet.replicas {fleet.replicas}; lower it, or leave it out for all"
    if not settings.delivery.networks:
        yield from _unplaced(settings)


def _unplaced(settings: Sections) -> Iterator[str]:
    """Hosts that are known by name alone."""
    for host, port in dict.fromkeys(settings.writer_reaches):
        named = [model.name for model in settings.models if model.origin == (host, port)]
        what = f"the source of {', '.join(named)}" if named else "delivery.proxy"
        if not is_address(host):
            yield (
                f"delivery.networks: got nothing, want the networks of {host}, {what}; list them, since a network policy cannot name hosts"
            )


def _largest_replica(settings: Sections) -> list[ModelSettings]:
    """The models of the replica that must hold most bytes."""
    fleet = settings.fleet.replicas
    models = settings.fleet_models
    held = [[model for model in models if is_held_by(model.name, model.replicas or 0, fleet, ordinal)] for ordinal in range(fleet)]
    return max(held, key=lambda models: sum(quantity(model.size) for model in models))


def _gpus(settings: Sections) -> Iterator[str]:
    fleet, gpu = settings.fleet, settings.gpu
    if fleet.gpus_per_pod and not gpu.enabled:
        yield f"fleet.gpusPerPod: got {fleet.gpus_per_pod}, want 0 while gpu.enabled is false; enable gpu or set it to 0"
    if fleet.gpus_per_pod > 1 and gpu.sharing.strategy != "none":
        # Shares of one pod may be of the same GPU, and a CUDA process uses one MIG partition only.
        yield f"fleet.gpusPerPod: got {fleet.gpus_per_pod}, want at most 1 with gpu.sharing {gpu.sharing.strategy}; take larger shares"


def _gpu_memory(settings: Sections) -> Iterator[str]:
    fleet, gpu = settings.fleet, settings.gpu
    have = gpu.unit_memory * fleet.gpus_per_pod
    models = _largest_replica(settings)
    need = sum(gpu_bytes(model, settings) for model in models)
    names = ", ".join(model.name for model in models)
    if have and need > have:
        yield (
            f"models: got {in_gib(need)} of GPU memory for {names} (weights + KV cache of contextLength "
            f"{fleet.context_length} x numParallel {fleet.num_parallel} + {in_gib(LLAMA_CPP_WORKSPACE)} a model and GPU), want at most "
            f"{in_gib(have)} ({gpu.describe_unit()}); lower fleet.contextLength or fleet.numParallel, or give more GPUs"
        )


def _host_memory(settings: Sections) -> Iterator[str]:
    """Weights pass through host memory (and stay there without a GPU); llama.cpp keeps old prompts there in any case."""
    fleet, models = settings.fleet, _largest_replica(settings)
    on_host = 0.0 if fleet.gpus_per_pod else sum(capacity.of_fleet(model, settings).kv_bytes for model in models)
    weights = sum(quantity(model.size) for model in models)
    cached = sum(capacity.of_fleet(model, settings).prompt_cache for model in models)
    need = weights + cached + on_host
    if need > quantity(fleet.resources.memory):
        yield (
            f"fleet.resources.memory: got {fleet.resources.memory}, want at least {in_gib(need)} (weights {in_gib(weights)}, promptCache "
            f"{in_gib(cached)}, KV cache {in_gib(on_host)}); raise it or lower fleet.promptCache"
        )


def _contexts(settings: Sections) -> Iterator[str]:
    fleet = settings.fleet
    for index, model in enumerate(settings.models):
        if model.in_fleet and not model.embeds and settings.context_length(model) < fleet.min_context:
            yield (
                f"models.{index}.contextLength: got {settings.context_length(model)}, want at least fleet.minContext {fleet.min_context}; "
                "raise it, say by minContext that less will do, or by models.embeds that it does not chat"
            )
    for model in settings.fleet_models if fleet.num_parallel > 1 else []:
        if _ONE_AT_A_TIME.match(model.name.rpartition("/")[2]):
            yield (
                f"fleet.numParallel: got {fleet.num_parallel}, want 1 with model {model.name}: Ollama serves its family one request at a "
                "time whatever is asked; set it to 1 and raise fleet.replicas"
            )


def _storage(settings: Sections) -> Iterator[str]:
    hot, shared = settings.storage.hot, settings.storage.shared
    held = sum(quantity(model.size) for model in _largest_replica(settings))
    need = sum(quantity(model.size) for model in settings.models)
    if (room := held / server_rules.HOT_FILL) > quantity(hot.size):
        yield f"storage.hot.size: got {hot.size}, want at least {in_gib(room)}, the models and a tenth more; raise it"
    if shared.claim is not None and not settings.storage.retain:
        yield f"storage.shared.claim: got {shared.claim} with retain false, want true, or the claim would go with the namespace; set it"
    if need > quantity(shared.size):
        yield f"storage.shared.size: got {shared.size}, want at least {in_gib(need)}, the sum of all models; raise it"


def _quota(settings: Sections) -> Iterator[str]:
    """What the workloads ask for together fits into the namespace's quota."""
    fleet, servers, limits, storage = settings.fleet, settings.model_servers, settings.governance, settings.storage
    prometheus = [settings.monitoring.prometheus] if settings.monitoring.prometheus else []
    parts = [
        (fleet.replicas, fleet.resources),
        *((fleet.replicas, each) for each in SIDECARS),
        (1, PROBE_RESOURCES),
        (settings.gpu_pods, settings.gpu.overhead),
        *((server.replicas, server.resources) for server in servers),
        (keepers := server_rules.keepers(settings), KEEPER_RESOURCES),
        (1, settings.cache.resources),
        (settings.api_server.replicas, settings.api_server.resources),
        (1, settings.monitoring.resources),
        *((1, each.resources) for each in prometheus),
    ]
    # A rollout makes one pod more of a Deployment before an old one goes, and may do so for all of them at once.
    own = (settings.cache.resources, settings.api_server.resources, settings.monitoring.resources)
    surge = (*(server.resources for server in servers), *own)
    cpu = sum(count * quantity(each.cpu) for count, each in parts) + sum(quantity(each.cpu) for each in surge)
    memory = sum(count * quantity(each.memory) for count, each in parts) + sum(quantity(each.memory) for each in surge)
    claimed = fleet.replicas * quantity(storage.hot.size) + quantity(storage.shared.size) + sum(quantity(each.size) for each in prometheus)
    claimed += sum(server.replicas * quantity(server_rules.local_size(server, settings)) for server in servers)
    tiers = server_rules.tier_claims(settings)
    claimed += sum(tiers)
    if cpu > quantity(limits.cpu):
        yield f"governance.cpu: got {limits.cpu}, want at least {cpu:.1f}, all requests and a rollout; raise it"
    if memory > quantity(limits.memory):
        yield f"governance.memory: got {limits.memory}, want at least {in_gib(memory)}, all requests and a rollout; raise it"
    # The gateway, model servers and fleet, and one each of cache, exporter, writer, cleaner, context probe, and what a rollout adds.
    count = fleet.replicas + sum(server.replicas for server in servers) + settings.api_server.replicas + 6 + len(prometheus)
    count += int(bool(settings.scales))
    if count > limits.pods:
        yield f"governance.pods: got {limits.pods}, want at least {count}, all replicas and six more; raise it or lower replicas"
    containers = count + fleet.replicas * len(SIDECARS) + keepers
    of_vllm = sum(server.replicas for server in servers if server.engine == "vllm")
    if (disk := (containers - of_vllm) * EPHEMERAL_DEFAULT + of_vllm * quantity(NODE_DISK)) > quantity(limits.ephemeral_storage):
        each = f"{EPHEMERAL_DEFAULT // MIB}Mi for each of {containers - of_vllm} containers"
        more_disk = f" and {NODE_DISK} for each of {of_vllm} with vLLM" if of_vllm else ""
        yield f"governance.ephemeralStorage: got {limits.ephemeral_storage}, want at least {in_gib(disk)}, {each}{more_disk}; raise it"
    more = (" and Prometheus'" if prometheus else "") + (f", and {len(tiers)} of cache.maxSize" if tiers else "")
    if (claims := fleet.replicas + sum(server.replicas for server in servers) + 1 + len(prometheus) + len(tiers)) > limits.claims:
        yield f"governance.claims: got {limits.claims}, want at least {claims}, one a replica, the shared one{more}; raise it"
    if claimed > quantity(limits.storage):
        yield f"governance.storage: got {limits.storage}, want at least {in_gib(claimed)}, the sum of all claims; raise it"


def _production(settings: Sections) -> Iterator[str]:
    because = "with governance.production"
    replicas = {"apiServer": settings.api_server.replicas, "fleet": settings.fleet.replicas}
    if settings.images.trust is not None:
        replicas["images.trust"] = settings.images.trust.replicas
    replicas |= {f"modelServers.{index}": server.replicas for index, server in enumerate(settings.model_servers)}
    for section, count in replicas.items():
        if count < 2:
            yield f"{section}.replicas: got {count}, want at least 2 {because}; raise it"
    if not settings.storage.retain:
        yield f"storage.retain: got false, want true {because}; models would go with the stack"
    api = settings.api_server
    if api.service_type != "ClusterIP" and not api.knows_its_clients:
        got = f"got {', '.join(api.client_cidrs)}, together a 16th of a family's addresses or more, with serviceType {api.service_type}"
        yield f"apiServer.clientCidrs: {got}, want your clients' networks {because}; list them"
    if settings.gpu.sharing.strategy == "time-slicing":
        yield f"gpu.sharing.strategy: got time-slicing, want none, mps or mig {because}; no memory limit would hold"
