"""From the settings to the arguments of each component. What another component made arrives as a value."""

from collections.abc import Mapping

import pulumi

import components as c
from components.contract import BATCH_PRIORITY, MODEL_SERVER, OLLAMA, PORTS
from components.gpu import device_class
from infra import ROOT
from infra.program import delivery
from infra.program.settings import Settings, inputs
from infra.program.settings.cluster import verifier_namespace
from infra.program.settings.gpu import GpuSettings
from infra.program.settings.images import VERIFIER_IMAGE, TrustSettings
from infra.program.settings.section import Resources, quantity
from infra.program.settings.storage import Tier

Images = Mapping[str, pulumi.Output[str]]
"""Name of an image to its reference."""
NO_GPUS = GpuSettings()
_HOLD_S = 600
"""How long a request waits for a fleet that starts from zero: for a node, the copy of the models, and their load."""
_ACTIVATOR = c.ResourceArgs(cpu="20m", memory="96Mi")


def _resources(resources: Resources, gpus: int = 0, gpu: GpuSettings = NO_GPUS) -> c.ResourceArgs:
    return c.ResourceArgs(
        cpu=resources.cpu, memory=resources.memory, gpus=gpus, gpu_resource=gpu.resource, claims_gpus=gpu.allocation == "dra"
    )


def _tier(tier: Tier, class_name: str) -> c.TierArgs:
    return c.TierArgs(
        provisioner=tier.provisioner,
        size=tier.size,
        parameters=tier.parameters,
        mount_options=tier.mount_options,
        class_name=class_name,
    )


def images(settings: Settings) -> c.RuntimeImagesArgs:
    return c.RuntimeImagesArgs(
        builder=settings.images.builder,
        registry=settings.images.registry,
        source=ROOT,
        refs=settings.images.refs,
        platform=settings.images.platform,
        builder_name=settings.images.builder_name,
        build=settings.cluster.render_to is None,
        registry_auth=inputs.registry_auth(),
    )


def governance(settings: Settings) -> c.GovernanceArgs:
    limits, gpu, fleet_ = settings.governance, settings.gpu, settings.fleet
    return c.GovernanceArgs(
        namespace=settings.cluster.namespace,
        gpu_quota=limits.gpu_quota,
        gpu_resource=gpu.resource,
        gpu_device_class=device_class(gpu.sharing.profile) if gpu.allocation == "dra" else None,
        gpu_reserved=fleet_.replicas * fleet_.gpus_per_pod,
        gpus_per_container=fleet_.gpus_per_pod,
        cpu=limits.cpu,
        memory=limits.memory,
        ephemeral_storage=limits.ephemeral_storage,
        pods=limits.pods,
        claims=limits.claims,
        storage=limits.storage,
        load_balancers=int(settings.api_server.service_type == "LoadBalancer"),
        retain=settings.storage.retain,
        batch_priority_class=settings.cluster.wide(BATCH_PRIORITY),
        registry_auth=inputs.registry_auth(),
    )


def image_trust(settings: Settings, trust: TrustSettings, namespace: pulumi.Input[str], images: Images) -> c.ImageTrustArgs:
    pair = inputs.verifier_tls()
    return c.ImageTrustArgs(
        protected_namespace=namespace,
        namespace=verifier_namespace(settings.cluster.namespace),
        image=images[VERIFIER_IMAGE],
        public_keys=trust.public_keys,
        certificate=pair["certificate"],
        private_key=pulumi.Output.secret(pair["privateKey"]),
        mirror=trust.mirror,
        registries=trust.registries,
        registry_auth=inputs.registry_auth(),
        ca_bundle=trust.ca_bundle,
        dns=_dns(settings),
        prefix=settings.cluster.wide(""),
        replicas=trust.replicas,
        resources=_resources(trust.resources),
    )


def _dns(settings: Settings) -> c.DnsArgs:
    found = settings.network.dns
    return c.DnsArgs(pods=c.PodsArgs(namespace=found.namespace, labels=found.pod_labels), port=found.port, cidrs=found.cidrs)


def network(settings: Settings, namespace: pulumi.Input[str]) -> c.NetworkArgs:
    scale = settings.fleet.scale_to_zero
    return c.NetworkArgs(
        namespace=namespace,
        client_cidrs=settings.api_server.client_cidrs,
        client_pods=[c.PodsArgs(namespace=each.namespace, labels=each.labels) for each in settings.network.clients],
        dns=_dns(settings),
        prometheus_namespace=settings.monitoring.prometheus_namespace,
        origins=delivery.origins(settings),
        origins_have_names=delivery.has_names(settings),
        kubernetes_cidrs=scale.kubernetes_cidrs if scale else (),
        contexts_are_probed=settings.fleet.fixed_replicas is not None,
    )


def gpu_runtime(settings: Settings, namespace: pulumi.Input[str]) -> c.GpuRuntimeArgs:
    gpu, strategy = settings.gpu, settings.gpu.sharing.strategy
    sharing = claim = None
    if gpu.allocation == "device-plugin" and strategy != "none":
        sharing = c.SharingArgs(strategy=strategy, operator_namespace=gpu.operator_namespace, replicas=gpu.sharing.replicas)
    if gpu.allocation == "dra" and settings.fleet.gpus_per_pod:
        claim = c.ClaimArgs(namespace=namespace, count=settings.fleet.gpus_per_pod, mig_profile=gpu.sharing.profile)
    return c.GpuRuntimeArgs(
        enabled=gpu.enabled,
        create_runtime_class=gpu.create_runtime_class,
        runtime_class=settings.runtime_class,
        handler=gpu.handler,
        priority=gpu.priority,
        prefix=settings.cluster.wide(""),
        overhead={"cpu": gpu.overhead.cpu, "memory": gpu.overhead.memory},
        sharing=sharing,
        claim=claim,
    )


def storage(settings: Settings, namespace: pulumi.Input[str]) -> c.StorageArgs:
    tiers = settings.storage
    hot, shared = _tier(tiers.hot, settings.hot_class), _tier(tiers.shared, settings.shared_class)
    return c.StorageArgs(namespace=namespace, hot=hot, shared=shared, retain=tiers.retain)


def cache(settings: Settings, namespace: pulumi.Input[str], images: Images) -> c.CacheServerArgs:
    return c.CacheServerArgs(
        namespace=namespace,
        image=images["cache-server"],
        password=inputs.cache_password(),
        max_memory_bytes=int(quantity(settings.cache.max_memory)),
        eviction_policy=settings.cache.eviction_policy,
        resources=_resources(settings.cache.resources),
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
        replicas=wanted.fixed_replicas,
        resources=_resources(wanted.resources, wanted.gpus_per_pod, settings.gpu),
        context_length=wanted.context_length,
        num_parallel=wanted.num_parallel,
        keep_alive=wanted.keep_alive,
        max_queue=wanted.max_queue,
        prompt_cache_bytes=int(quantity(wanted.prompt_cache)),
        runtime_class=runtime.runtime_class if wanted.gpus_per_pod else None,
        priority_class=runtime.priority_class,
        claim_template=runtime.claim_template,
        agent=c.AgentArgs(image=images["ollama-agent"], drain_s=wanted.drain_seconds, min_context=wanted.min_context),
        models={model.name: model.replicas or wanted.replicas for model in settings.models},
        retain=settings.storage.retain,
    )


def model_server(
    settings: Settings,
    namespace: pulumi.Input[str],
    images: Images,
    runtime: c.GpuRuntime,
    store: c.Storage,
    answers: c.CacheServer,
) -> c.ModelServerArgs:
    wanted = settings.model_server
    return c.ModelServerArgs(
        namespace=namespace,
        image=images["model-server"],
        shared_claim=store.shared_claim,
        cache_secret=answers.secret_name,
        replicas=wanted.replicas,
        resources=_resources(wanted.resources),
        model=wanted.model,
        model_version=delivery.model_version(settings, images["models"]),
        model_id=wanted.model_id,
        context_length=wanted.context_length,
        parallel=wanted.parallel,
        max_queue=wanted.max_queue,
        priority_class=runtime.priority_class,
    )


def routes(settings: Settings) -> dict[str, dict[str, str | int]]:
    """Model id to upstream: the fleet's models by their own names, the model server's under its id."""
    server = settings.model_server
    limit = settings.api_server.max_in_flight
    table: dict[str, dict[str, str | int]] = {
        model.name: {
            "url": f"http://{OLLAMA}:{PORTS[OLLAMA]}",
            "model": model.name,
            "max_in_flight": limit,
            "engine": "ollama",
            "context_length": settings.context_length(model),
        }
        for model in settings.models
    }
    table[server.model_id] = {
        "url": f"http://{MODEL_SERVER}:{PORTS[MODEL_SERVER]}",
        "model": server.model_id,
        "max_in_flight": server.parallel + server.max_queue,
    }
    return table


def _exposure(settings: Settings) -> c.ExposureArgs:
    wanted = settings.api_server
    local = "Local" if wanted.knows_its_clients and wanted.service_type != "ClusterIP" else None
    return c.ExposureArgs(
        annotations=wanted.service_annotations,
        load_balancer_class=wanted.load_balancer_class,
        source_ranges=wanted.client_cidrs if wanted.knows_its_clients and wanted.service_type == "LoadBalancer" else (),
        external_traffic_policy=wanted.external_traffic_policy or local,
    )


def api_server(settings: Settings, namespace: pulumi.Input[str], images: Images, runtime: c.GpuRuntime) -> c.ApiServerArgs:
    wanted = settings.api_server
    return c.ApiServerArgs(
        namespace=namespace,
        image=images["api-server"],
        keys=inputs.api_keys(),
        routes=routes(settings),
        replicas=None if wanted.autoscaled else wanted.replicas,
        hold_s=wanted.hold_seconds or (_HOLD_S if settings.fleet.scale_to_zero else 0),
        resources=_resources(wanted.resources),
        service_type=wanted.service_type,
        node_port=wanted.node_port,
        exposure=_exposure(settings),
        priority_class=runtime.gateway_priority_class,
    )


def activator(
    settings: Settings, idle_minutes: int, namespace: pulumi.Input[str], images: Images, runtime: c.GpuRuntime
) -> c.ActivatorArgs:
    return c.ActivatorArgs(
        namespace=namespace,
        image=images["api-server"],
        replicas=settings.fleet.replicas,
        idle_s=60 * idle_minutes,
        resources=_ACTIVATOR,
        priority_class=runtime.gateway_priority_class,
    )


def monitoring(
    settings: Settings, namespace: pulumi.Input[str], images: Images, runtime: c.GpuRuntime, answers: c.CacheServer
) -> c.MonitoringArgs:
    return c.MonitoringArgs(
        namespace=namespace,
        image=images["metrics-exporter"],
        cache_secret=answers.secret_name,
        resources=_resources(settings.monitoring.resources),
        gpu_nodes=settings.gpu.enabled,
        runtime_class=runtime.runtime_class,
        alert_rules=settings.monitoring.alert_rules,
    )
