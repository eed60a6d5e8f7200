"""From the settings to the arguments of each workload's component. What another component made arrives as a value."""

from dataclasses import asdict

import pulumi

import components as c
from components.contract import API_SERVER, METRICS_EXPORTER, MODEL_SERVER, OLLAMA, PORTS, PROMETHEUS
from infra.program import delivery, tls
from infra.program.foundations import Images
from infra.program.settings import Settings, inputs
from infra.program.settings.capacity import Capacity, capacities, of_server, offloaded
from infra.program.settings.images import VLLM_IMAGE
from infra.program.settings.model_servers import ModelServerSettings
from infra.program.settings.section import quantity
from infra.program.settings.server_memory import shm_bytes
from infra.program.settings.server_rules import local_size
from infra.program.settings.services import PrometheusSettings
from infra.program.workload import resources, workload

_HOLD_S = 600
"""How long a request waits for a fleet that starts from zero: for a node, the copy of the models, and their load."""
_ACTIVATOR = c.ResourceArgs(cpu="20m", memory="96Mi")


def cache(settings: Settings, namespace: pulumi.Input[str], images: Images) -> c.CacheServerArgs:
    return c.CacheServerArgs(
        namespace=namespace,
        image=images["cache-server"],
        password=inputs.cache_password(),
        max_memory_bytes=int(quantity(settings.cache.max_memory)),
        eviction_policy=settings.cache.server_policy,
        resources=resources(settings.cache.resources),
        workload=workload(settings, "cache-server"),
    )


def fleet(settings: Settings, namespace: pulumi.Input[str], images: Images, runtime: c.GpuRuntime, store: c.Storage) -> c.OllamaFleetArgs:
    wanted, size = settings.fleet, settings.storage.hot.size
    return c.OllamaFleetArgs(
        namespace=namespace,
        image=images["ollama"],
        sync_image=images["model-sync"],
        shared_claim=store.shared_claim,
        hot_class=store.hot_class,
        hot_size=size,
        hot_bytes=int(quantity(size)),
        replicas=wanted.replicas,
        autoscaled=wanted.fixed_replicas is None,
        keep_copies=wanted.keeps_copies,
        resources=resources(wanted.resources, wanted.gpus_per_pod, settings.gpu),
        context_length=wanted.context_length,
        num_parallel=wanted.num_parallel,
        keep_alive=wanted.keep_alive,
        max_queue=wanted.max_queue,
        prompt_cache_bytes=int(quantity(wanted.prompt_cache)),
        runtime_class=(runtime.runtime_class or "") if wanted.gpus_per_pod else None,
        priority_class=runtime.priority_class,
        claim_template=runtime.claim_template,
        agent=_agent(settings, images["ollama-agent"]),
        models={model.name: model.replicas or wanted.replicas for model in settings.fleet_models},
        retain=settings.storage.retain,
        workload=workload(settings, "ollama"),
    )


def _agent(settings: Settings, image: pulumi.Input[str]) -> c.AgentArgs:
    wanted = settings.fleet
    return c.AgentArgs(
        image=image,
        drain_s=wanted.drain_seconds,
        min_context=wanted.min_context,
        embedding=tuple(model.name for model in settings.models if model.embeds),
        probe=workload(settings, "context-probe"),
    )


def model_server(
    wanted: ModelServerSettings,
    settings: Settings,
    namespace: pulumi.Input[str],
    images: Images,
    runtime: c.GpuRuntime,
    store: c.Storage,
    answers: c.CacheServer,
) -> c.ModelServerArgs:
    model, gpu, llama_cpp = settings.model(wanted.model), settings.gpu, wanted.llama_cpp
    claims = wanted.gpus > 0 and gpu.allocation == "dra"
    return c.ModelServerArgs(
        namespace=namespace,
        component=wanted.component,
        image=llama_cpp.image if llama_cpp else images[VLLM_IMAGE if wanted.engine == "vllm" else "model-server"],
        shared_claim=store.shared_claim,
        local=_local_copy(wanted, settings, images, store),
        cache_secret=answers.users_secret_name,
        cache_user=MODEL_SERVER,
        replicas=wanted.replicas,
        autoscaled=wanted.scale is not None,
        resources=resources(wanted.resources, wanted.gpus, gpu),
        model=wanted.model,
        model_version=delivery.model_version(model, images["models"]),
        model_bytes=int(quantity(model.size)),
        model_id=wanted.model_id,
        context_length=wanted.context_length,
        parallel=wanted.parallel,
        max_queue=wanted.max_queue,
        prompt_cache_bytes=int(of_server(wanted, settings).prompt_cache),
        offload_bytes=int(offloaded(wanted)),
        tier=_tier(wanted, settings, store),
        vllm=_vllm(wanted) if wanted.engine == "vllm" else None,
        llama_server=llama_cpp.program if llama_cpp else "",
        runtime_class=(runtime.runtime_class or "") if wanted.gpus else None,
        claim=c.ClaimArgs(namespace=namespace, count=wanted.gpus, mig_profile=gpu.sharing.profile) if claims else None,
        priority_class=runtime.priority_class,
        workload=workload(settings, "model-server", wanted.placement),
    )


def _tier(wanted: ModelServerSettings, settings: Settings, store: c.Storage) -> c.CacheTierArgs | None:
    cache, shared = settings.cache, settings.storage.shared
    if cache.max_size is None:
        return None
    return c.CacheTierArgs(
        size=cache.max_size,
        size_bytes=int(quantity(cache.max_size)),
        storage_class=store.hot_class,
        shared_class=store.shared_class if cache.shared_cache and wanted.engine == "vllm" else None,
        shared_access_mode=shared.access_mode,
    )


def _vllm(wanted: ModelServerSettings) -> c.VllmArgs:
    return c.VllmArgs(**wanted.of_vllm.model_dump(), shm_bytes=shm_bytes(wanted.gpus))


def _local_copy(wanted: ModelServerSettings, settings: Settings, images: Images, store: c.Storage) -> c.LocalCopyArgs:
    size = local_size(wanted, settings)
    return c.LocalCopyArgs(
        image=images["model-sync"],
        storage_class=store.hot_class,
        size=size,
        capacity_bytes=int(quantity(size)),
        retain=settings.storage.retain,
        keep=wanted.keeps_copies,
    )


def routes(settings: Settings) -> dict[str, dict[str, str | int]]:
    """Model id to upstream: the fleet's models by their own names, those of model servers under their ids, and those of pools of others."""
    limit = settings.api_server.max_in_flight
    capacity = capacities(settings)
    table: dict[str, dict[str, str | int]] = {
        model.name: {
            "url": f"http://{OLLAMA}:{PORTS[OLLAMA]}",
            "model": model.name,
            "max_in_flight": limit,
            "engine": "ollama",
            "context_length": settings.context_length(model),
            "slots": capacity[model.name].in_slots,
            "cached_tokens": capacity[model.name].cached_tokens,
            **_turns(capacity[model.name]),
        }
        for model in settings.fleet_models
    }
    table |= {
        server.model_id: {
            "url": f"http://{server.component}:{PORTS[MODEL_SERVER]}",
            "model": server.model_id,
            "max_in_flight": server.parallel + server.max_queue,
            "slots": capacity[server.model_id].in_slots,
            "cached_tokens": capacity[server.model_id].cached_tokens,
            **_turns(capacity[server.model_id]),
        }
        for server in settings.model_servers
    }
    return table | _external_routes(settings)


def _turns(found: Capacity) -> dict[str, int]:
    return {} if found.turns_per_hour_each is None else {"turns_per_hour": found.turns_per_hour_each}


def _external_routes(settings: Settings) -> dict[str, dict[str, str | int]]:
    return {
        model.id: {
            "pool": name,
            "url": pool.url,
            "model": model.model or model.id,
            "max_in_flight": pool.max_in_flight,
            "context_length": model.context_length,
            "session_header": pool.session_header or "",
            "ca": pool.ca_bundle,
        }
        for name, pool in settings.external_pools.items()
        for model in pool.models
    }


def _exposure(settings: Settings) -> c.ExposureArgs:
    wanted = settings.api_server
    local = "Local" if wanted.knows_its_clients and wanted.service_type != "ClusterIP" else None
    return c.ExposureArgs(
        annotations=wanted.service_annotations,
        load_balancer_class=wanted.load_balancer_class,
        source_ranges=wanted.client_cidrs if wanted.knows_its_clients and wanted.service_type == "LoadBalancer" else (),
        external_traffic_policy=wanted.external_traffic_policy or local,
        ip_family_policy=wanted.ip_family_policy,
    )


def api_server(
    settings: Settings, namespace: pulumi.Input[str], images: Images, runtime: c.GpuRuntime, shared: c.CacheServer
) -> c.ApiServerArgs:
    wanted, to_zero = settings.api_server, any(scale.min == 0 for scale in settings.scales.values())
    return c.ApiServerArgs(
        namespace=namespace,
        image=images["api-server"],
        named_keys=inputs.api_keys(),
        pool_keys=inputs.external_keys() if settings.external_pools else None,
        routes=routes(settings),
        aliases={name: alias.model_dump(exclude_none=True) for name, alias in settings.aliases.items()},
        replicas=wanted.replicas,
        autoscaled=wanted.autoscaled,
        hold_s=wanted.hold_seconds or (_HOLD_S if to_zero else 0),
        queue_s=wanted.queue_seconds,
        cors_origins=wanted.cors_origins,
        session_headers=wanted.session_headers,
        cache_secret=shared.users_secret_name,
        cache_user=API_SERVER,
        resources=resources(wanted.resources),
        service_type=wanted.service_type,
        node_port=wanted.node_port,
        exposure=_exposure(settings),
        tls=tls.tls(settings),
        way_in=tls.way_in(settings),
        priority_class=runtime.gateway_priority_class,
        workload=workload(settings, "api-server"),
    )


def activator(settings: Settings, namespace: pulumi.Input[str], images: Images, runtime: c.GpuRuntime) -> c.ActivatorArgs:
    replicas = {OLLAMA: settings.fleet.replicas} | {server.component: server.replicas for server in settings.model_servers}
    scales = {
        name: c.ScaleArgs(replicas=replicas[name], min_replicas=scale.min, idle_s=60 * scale.idle_minutes)
        for name, scale in settings.scales.items()
    }
    fleet = asdict(scales.pop(OLLAMA)) if OLLAMA in scales else {}
    return c.ActivatorArgs(
        namespace=namespace,
        image=images["api-server"],
        **fleet,
        model_servers=scales,
        resources=_ACTIVATOR,
        priority_class=runtime.gateway_priority_class,
        workload=workload(settings, "activator"),
    )


def _objectives(settings: Settings) -> c.ObjectivesArgs:
    return c.ObjectivesArgs(**settings.monitoring.objectives.model_dump())


def monitoring(
    settings: Settings, namespace: pulumi.Input[str], images: Images, runtime: c.GpuRuntime, answers: c.CacheServer
) -> c.MonitoringArgs:
    return c.MonitoringArgs(
        namespace=namespace,
        image=images["metrics-exporter"],
        cache_secret=answers.users_secret_name,
        cache_user=METRICS_EXPORTER,
        resources=resources(settings.monitoring.resources),
        gpu_nodes=settings.gpu.enabled,
        gpu_node_labels=settings.gpu.nodes,
        runtime_class=runtime.runtime_class,
        priority_class=runtime.priority_class,
        alert_rules=settings.monitoring.alert_rules,
        monitors=settings.monitoring.scrape if settings.monitoring.scrape in ("pod-monitor", "pod-monitoring") else None,
        labels=settings.monitoring.labels,
        objectives=_objectives(settings),
        model_servers=settings.server_components,
        workload=workload(settings, "metrics-exporter"),
    )


def prometheus(
    settings: Settings, wanted: PrometheusSettings, namespace: pulumi.Input[str], images: Images, store: c.Storage
) -> c.PrometheusArgs:
    return c.PrometheusArgs(
        namespace=namespace,
        image=images[PROMETHEUS],
        storage_class=wanted.class_name or store.hot_class,
        size=wanted.size,
        retention_bytes=wanted.retention_bytes,
        retention_days=wanted.retention_days,
        retain=settings.storage.retain,
        resources=resources(wanted.resources),
        objectives=_objectives(settings),
        model_servers=settings.server_components,
        workload=workload(settings, "prometheus"),
    )
