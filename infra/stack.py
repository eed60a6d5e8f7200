"""The composition: which components, from which settings, in which order."""

import json
import os
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

import components as c
from components.contract import PORTS
from infra import cluster
from infra.outputs import VERSION
from infra.settings import PROJECT, Resources, Settings, SettingsError, Tier, parse, quantity

_SECRETS = {
    "apiKeys": "a JSON list of keys of 16 or more characters; run pulumi config set --secret apiKeys '[\"…\"]'",
    "cachePassword": "16 or more letters and digits; run pulumi config set --secret cachePassword",
}


def deploy() -> None:
    """The Pulumi program. Ends with one error and exit status 1, before any resource, when the configuration is wrong."""
    try:
        settings = load()
        cluster.check(settings.cluster)
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    build(settings)


def load() -> Settings:
    """Settings and secrets of the current stack, checked. Raises SettingsError."""
    document: dict[str, Any] = {}
    for key in _configured_keys():
        if key not in _SECRETS:
            text = pulumi.Config(PROJECT).require(key)
            try:
                document[key] = json.loads(text)
            except json.JSONDecodeError:
                document[key] = text
    problems: list[str] = []
    settings: Settings | None = None
    try:
        settings = parse(document)
    except SettingsError as error:
        problems.append(str(error))
    problems += _secret_problems()
    if problems or settings is None:
        raise SettingsError("\n".join(problems))
    return settings


def _configured_keys() -> list[str]:
    """Names of all keys of our project: an unknown section must be an error, and pulumi.Config cannot list."""
    names = json.loads(os.environ.get("PULUMI_CONFIG") or "{}") or pulumi.runtime.config.CONFIG.get()
    return sorted(name.removeprefix(f"{PROJECT}:") for name in names if name.startswith(f"{PROJECT}:"))


def _secret_problems() -> list[str]:
    config = pulumi.Config(PROJECT)
    problems: list[str] = []
    for name, want in _SECRETS.items():
        value = config.get(name)
        if value is None:
            problems.append(f"{PROJECT}:{name}: got nothing, want {want}")
        elif not _is_valid_secret(name, value):
            problems.append(f"{PROJECT}:{name}: got another form, want {want}")
    return problems


def _is_valid_secret(name: str, value: str) -> bool:
    if name == "cachePassword":
        return len(value) >= 16 and value.isalnum() and value.isascii()
    try:
        keys = json.loads(value)
    except json.JSONDecodeError:
        return False
    return isinstance(keys, list) and bool(keys) and all(isinstance(key, str) and len(key) >= 16 and key.isprintable() for key in keys)


def _resources(resources: Resources, gpus: int = 0, gpu_resource: str = "nvidia.com/gpu") -> c.ResourceArgs:
    return c.ResourceArgs(cpu=resources.cpu, memory=resources.memory, gpus=gpus, gpu_resource=gpu_resource)


def _tier(tier: Tier) -> c.TierArgs:
    return c.TierArgs(provisioner=tier.provisioner, size=tier.size, parameters=tier.parameters, mount_options=tier.mount_options)


def routes(settings: Settings) -> dict[str, dict[str, str | int]]:
    """Model id to upstream: the fleet's models by their own names, the model server's under its id."""
    fleet, server = settings.fleet, settings.model_server
    limit = settings.api_server.max_in_flight
    table: dict[str, dict[str, str | int]] = {
        model: {"url": f"http://ollama:{PORTS['ollama']}", "model": model, "max_in_flight": limit} for model in fleet.models
    }
    table[server.model_id] = {
        "url": f"http://model-server:{PORTS['model-server']}",
        "model": server.model_id,
        "max_in_flight": server.parallel + server.max_queue,
    }
    return table


def build(settings: Settings) -> None:
    """Register every component."""
    target = settings.cluster
    if target.render_to is not None:
        provider = k8s.Provider("cluster", render_yaml_to_directory=target.render_to)
    else:
        provider = k8s.Provider("cluster", context=target.context, cluster_identifier=target.identity)
    opts = pulumi.ResourceOptions(providers=[provider])
    config = pulumi.Config(PROJECT)
    gpu, storage = settings.gpu, settings.storage

    images = c.RuntimeImages(
        "images",
        c.RuntimeImagesArgs(
            builder=settings.images.builder,
            registry=settings.images.registry,
            refs=settings.images.refs,
            platform=settings.images.platform,
            builder_name=settings.images.builder_name,
            build=target.render_to is None,
        ),
    )
    governance = c.Governance(
        "governance",
        c.GovernanceArgs(
            namespace=target.namespace,
            gpu_quota=settings.governance.gpu_quota,
            gpu_resource=gpu.resource,
            cpu=settings.governance.cpu,
            memory=settings.governance.memory,
            pods=settings.governance.pods,
            retain=storage.retain,
        ),
        opts,
    )
    namespace = governance.namespace
    c.Network(
        "network",
        c.NetworkArgs(
            namespace=namespace,
            client_cidrs=settings.api_server.client_cidrs,
            prometheus_namespace=settings.monitoring.prometheus_namespace,
        ),
        opts,
    )
    runtime = c.GpuRuntime(
        "gpu",
        c.GpuRuntimeArgs(
            enabled=gpu.enabled,
            create_runtime_class=gpu.create_runtime_class,
            runtime_class=gpu.runtime_class,
            handler=gpu.handler,
            priority=gpu.priority,
        ),
        opts,
    )
    store = c.Storage(
        "storage",
        c.StorageArgs(namespace=namespace, hot=_tier(storage.hot), shared=_tier(storage.shared), retain=storage.retain),
        opts,
    )
    written = c.ModelStore(
        "models", c.ModelStoreArgs(namespace=namespace, image=images.refs["models"], claim=store.shared_claim), opts
    )  # fmt: skip
    readers = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[store, written]))
    cache = c.CacheServer(
        "cache",
        c.CacheServerArgs(
            namespace=namespace,
            image=images.refs["cache-server"],
            password=config.require_secret("cachePassword"),
            max_memory_bytes=int(quantity(settings.cache.max_memory)),
            eviction_policy=settings.cache.eviction_policy,
            resources=_resources(settings.cache.resources),
        ),
        opts,
    )
    fleet = c.OllamaFleet(
        "ollama",
        c.OllamaFleetArgs(
            namespace=namespace,
            image=images.refs["ollama"],
            sync_image=images.refs["models"],
            shared_claim=store.shared_claim,
            hot_class=store.hot_class,
            hot_size=storage.hot.size,
            replicas=settings.fleet.replicas,
            resources=_resources(settings.fleet.resources, settings.fleet.gpus_per_pod, gpu.resource),
            models=settings.fleet.models,
            context_length=settings.fleet.context_length,
            num_parallel=settings.fleet.num_parallel,
            keep_alive=settings.fleet.keep_alive,
            max_queue=settings.fleet.max_queue,
            runtime_class=runtime.runtime_class if settings.fleet.gpus_per_pod else None,
            priority_class=runtime.priority_class,
            retain=storage.retain,
        ),
        readers,
    )
    server = c.ModelServer(
        "model-server",
        c.ModelServerArgs(
            namespace=namespace,
            image=images.refs["model-server"],
            shared_claim=store.shared_claim,
            cache_secret=cache.secret_name,
            replicas=settings.model_server.replicas,
            resources=_resources(settings.model_server.resources),
            model=settings.model_server.model,
            model_id=settings.model_server.model_id,
            context_length=settings.model_server.context_length,
            parallel=settings.model_server.parallel,
            max_queue=settings.model_server.max_queue,
            priority_class=runtime.priority_class,
        ),
        readers,
    )
    api = c.ApiServer(
        "api-server",
        c.ApiServerArgs(
            namespace=namespace,
            image=images.refs["api-server"],
            keys=config.require_secret_object("apiKeys"),
            routes=routes(settings),
            replicas=settings.api_server.replicas,
            resources=_resources(settings.api_server.resources),
            service_type=settings.api_server.service_type,
            node_port=settings.api_server.node_port,
        ),
        # Its first look-up must find both, or the first requests would be refused.
        pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[fleet, server])),
    )
    c.Monitoring(
        "monitoring",
        c.MonitoringArgs(
            namespace=namespace,
            image=images.refs["metrics-exporter"],
            cache_secret=cache.secret_name,
            ollama_url=fleet.url,
            resources=_resources(settings.monitoring.resources),
            gpu_nodes=gpu.enabled,
            runtime_class=runtime.runtime_class,
        ),
        opts,
    )
    pulumi.export(
        "fleet",
        {
            "version": VERSION,
            "namespace": namespace,
            "service": api.service_name,
            "port": PORTS["api-server"],
            "node_port": settings.api_server.node_port,
            "base_path": "/v1",
            "models": [
                *({"id": model, "context_length": settings.fleet.context_length} for model in settings.fleet.models),
                {"id": settings.model_server.model_id, "context_length": settings.model_server.context_length},
            ],
            "images": dict(images.refs),
        },
    )
