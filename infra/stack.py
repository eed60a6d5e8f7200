"""The composition: which components, from which settings, in which order."""

import dataclasses
from pathlib import Path

import pulumi
import pulumi_kubernetes as k8s

import components as c
from components.contract import PORTS
from components.gpu import device_class
from components.registry_auth import pulls
from infra import certificates, cluster, delivery
from infra.gpu_settings import GpuSettings
from infra.inputs import load, registry_auth, verifier_tls
from infra.outputs import outputs
from infra.section import PROJECT, Resources, SettingsError, quantity
from infra.settings import VERIFIER_IMAGE, ScaleToZeroSettings, Settings, Tier, TrustSettings

NO_GPUS = GpuSettings()
_ROOT = Path(__file__).resolve().parent.parent
"""The repository: what images are built from."""
_HOLD_S = 600
"""Start of a fleet from zero: a node, the copy of the models, their load."""


def deploy() -> None:
    """The Pulumi program. Ends with one error and exit status 1, before any resource, when the configuration is wrong."""
    try:
        settings = load()
        cluster.check(settings.cluster)
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    build(settings)


def _resources(resources: Resources, gpus: int = 0, gpu: GpuSettings = NO_GPUS) -> c.ResourceArgs:
    return c.ResourceArgs(
        cpu=resources.cpu, memory=resources.memory, gpus=gpus, gpu_resource=gpu.resource, claims_gpus=gpu.allocation == "dra"
    )


def _tier(tier: Tier) -> c.TierArgs:
    return c.TierArgs(provisioner=tier.provisioner, size=tier.size, parameters=tier.parameters, mount_options=tier.mount_options)


def _governance(settings: Settings) -> c.GovernanceArgs:
    limits, gpu, fleet = settings.governance, settings.gpu, settings.fleet
    return c.GovernanceArgs(
        namespace=settings.cluster.namespace,
        gpu_quota=limits.gpu_quota,
        gpu_resource=gpu.resource,
        gpu_device_class=device_class(gpu.sharing.profile) if gpu.allocation == "dra" else None,
        gpu_reserved=fleet.replicas * fleet.gpus_per_pod,
        gpus_per_container=fleet.gpus_per_pod,
        cpu=limits.cpu,
        memory=limits.memory,
        ephemeral_storage=limits.ephemeral_storage,
        pods=limits.pods,
        claims=limits.claims,
        storage=limits.storage,
        load_balancers=int(settings.api_server.service_type == "LoadBalancer"),
        retain=settings.storage.retain,
        registry_auth=registry_auth(),
    )


def _gpu_runtime(settings: Settings, namespace: pulumi.Input[str]) -> c.GpuRuntimeArgs:
    gpu, strategy = settings.gpu, settings.gpu.sharing.strategy
    sharing = claim = None
    if gpu.allocation == "device-plugin" and strategy != "none":
        sharing = c.SharingArgs(strategy=strategy, operator_namespace=gpu.operator_namespace, replicas=gpu.sharing.replicas)
    if gpu.allocation == "dra" and settings.fleet.gpus_per_pod:
        claim = c.ClaimArgs(namespace=namespace, count=settings.fleet.gpus_per_pod, mig_profile=gpu.sharing.profile)
    return c.GpuRuntimeArgs(
        enabled=gpu.enabled,
        create_runtime_class=gpu.create_runtime_class,
        runtime_class=gpu.runtime_class,
        handler=gpu.handler,
        priority=gpu.priority,
        overhead={"cpu": gpu.overhead.cpu, "memory": gpu.overhead.memory},
        sharing=sharing,
        claim=claim,
    )


def routes(settings: Settings) -> dict[str, dict[str, str | int]]:
    """Model id to upstream: the fleet's models by their own names, the model server's under its id."""
    server = settings.model_server
    limit = settings.api_server.max_in_flight
    table: dict[str, dict[str, str | int]] = {
        model.name: {
            "url": f"http://ollama:{PORTS['ollama']}",
            "model": model.name,
            "max_in_flight": limit,
            "engine": "ollama",
            "context_length": settings.context_length(model),
        }
        for model in settings.models
    }
    table[server.model_id] = {
        "url": f"http://model-server:{PORTS['model-server']}",
        "model": server.model_id,
        "max_in_flight": server.parallel + server.max_queue,
    }
    return table


def _activator(
    settings: Settings,
    scale: ScaleToZeroSettings,
    images: c.RuntimeImages,
    namespace: pulumi.Output[str],
    runtime: c.GpuRuntime,
    opts: pulumi.ResourceOptions,
) -> None:
    c.Activator(
        "activator",
        c.ActivatorArgs(
            namespace=namespace,
            image=images.refs["api-server"],
            replicas=settings.fleet.replicas,
            idle_s=60 * scale.idle_minutes,
            resources=c.ResourceArgs(cpu="20m", memory="96Mi"),
            priority_class=runtime.gateway_priority_class,
        ),
        opts,
    )


def _image_trust(
    settings: Settings, trust: TrustSettings, images: c.RuntimeImages, namespace: pulumi.Output[str], opts: pulumi.ResourceOptions
) -> c.ImageTrust:
    pair = verifier_tls()
    return c.ImageTrust(
        "image-trust",
        c.ImageTrustArgs(
            protected_namespace=namespace,
            namespace=certificates.verifier_namespace(settings.cluster.namespace),
            image=images.refs[VERIFIER_IMAGE],
            public_keys=trust.public_keys,
            certificate=pair["certificate"],
            private_key=pulumi.Output.secret(pair["privateKey"]),
            mirror=trust.mirror,
            registries=trust.registries,
            registry_auth=registry_auth(),
            ca_bundle=trust.ca_bundle,
            replicas=trust.replicas,
            resources=_resources(trust.resources),
        ),
        opts,
    )


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
            source=_ROOT,
            refs=settings.images.refs,
            platform=settings.images.platform,
            builder_name=settings.images.builder_name,
            build=target.render_to is None,
            registry_auth=registry_auth(),
        ),
    )
    governance = c.Governance("governance", _governance(settings), opts)
    namespace = governance.namespace
    if registry_auth() is not None:
        opts = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[governance], transformations=[pulls]))
    if settings.images.trust is not None:
        trust = _image_trust(settings, settings.images.trust, images, namespace, opts)
        # A pod that is made before the webhook would not be checked.
        opts = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[trust]))
    network = c.Network(
        "network",
        c.NetworkArgs(
            namespace=namespace,
            client_cidrs=settings.api_server.client_cidrs,
            prometheus_namespace=settings.monitoring.prometheus_namespace,
            origins=delivery.origins(settings),
            origins_have_names=delivery.has_names(settings),
            kubernetes_cidrs=settings.fleet.scale_to_zero.kubernetes_cidrs if settings.fleet.scale_to_zero else (),
            contexts_are_probed=settings.fleet.fixed_replicas is not None,
        ),
        opts,
    )
    # No pod is there before its policies; and an activator that has to go is cut off from the gateways before the fleet comes up for good.
    opts = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[network]))
    runtime = c.GpuRuntime("gpu", _gpu_runtime(settings, namespace), opts)
    store = c.Storage(
        "storage",
        c.StorageArgs(namespace=namespace, hot=_tier(storage.hot), shared=_tier(storage.shared), retain=storage.retain),
        opts,
    )
    # Pods name the classes; without them they would be refused.
    opts = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[runtime]))
    written = c.ModelStore(
        "models",
        dataclasses.replace(
            delivery.model_store(settings, namespace, images.refs, store.shared_claim),
            priority_class=runtime.batch_priority_class,
            credentials=config.get_secret("sourceTokens"),
        ),
        opts,
    )
    readers = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[store, written.writer]))
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
            sync_image=images.refs["model-sync"],
            shared_claim=store.shared_claim,
            hot_class=store.hot_class,
            hot_size=storage.hot.size,
            hot_bytes=int(quantity(storage.hot.size)),
            replicas=settings.fleet.fixed_replicas,
            resources=_resources(settings.fleet.resources, settings.fleet.gpus_per_pod, gpu),
            context_length=settings.fleet.context_length,
            num_parallel=settings.fleet.num_parallel,
            keep_alive=settings.fleet.keep_alive,
            max_queue=settings.fleet.max_queue,
            prompt_cache_bytes=int(quantity(settings.fleet.prompt_cache)),
            runtime_class=runtime.runtime_class if settings.fleet.gpus_per_pod else None,
            priority_class=runtime.priority_class,
            claim_template=runtime.claim_template,
            agent=c.AgentArgs(
                image=images.refs["ollama-agent"], drain_s=settings.fleet.drain_seconds, min_context=settings.fleet.min_context
            ),
            models={model.name: model.replicas or settings.fleet.replicas for model in settings.models},
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
            model_version=delivery.model_version(settings, images.refs["models"]),
            model_id=settings.model_server.model_id,
            context_length=settings.model_server.context_length,
            parallel=settings.model_server.parallel,
            max_queue=settings.model_server.max_queue,
            priority_class=runtime.priority_class,
        ),
        readers,
    )
    written.clean_after([fleet, server])
    api = c.ApiServer(
        "api-server",
        c.ApiServerArgs(
            namespace=namespace,
            image=images.refs["api-server"],
            keys=config.require_secret_object("apiKeys"),
            routes=routes(settings),
            replicas=None if settings.api_server.autoscaled else settings.api_server.replicas,
            hold_s=settings.api_server.hold_seconds or (_HOLD_S if settings.fleet.scale_to_zero else 0),
            resources=_resources(settings.api_server.resources),
            service_type=settings.api_server.service_type,
            node_port=settings.api_server.node_port,
            priority_class=runtime.gateway_priority_class,
        ),
        # Its first look-up must find both, or the first requests would be refused.
        pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[fleet, server])),
    )
    if settings.fleet.scale_to_zero is not None:
        _activator(settings, settings.fleet.scale_to_zero, images, namespace, runtime, opts)
    c.Monitoring(
        "monitoring",
        c.MonitoringArgs(
            namespace=namespace,
            image=images.refs["metrics-exporter"],
            cache_secret=cache.secret_name,
            resources=_resources(settings.monitoring.resources),
            gpu_nodes=gpu.enabled,
            runtime_class=runtime.runtime_class,
            alert_rules=settings.monitoring.alert_rules,
        ),
        opts,
    )
    pulumi.export("fleet", outputs(settings, api, fleet, images.refs))
    pulumi.export("apiKeys", pulumi.Output.secret(config.require_secret_object("apiKeys")))
