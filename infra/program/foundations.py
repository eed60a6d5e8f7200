"""From the settings to the arguments of the components that every workload stands on. What another one made arrives as a value."""

from collections.abc import Mapping, Sequence

import pulumi

import components as c
from components.contract import BATCH_PRIORITY
from components.gpu import device_class
from infra import ROOT
from infra.program import delivery
from infra.program.settings import Settings, inputs
from infra.program.settings.cluster import verifier_namespace
from infra.program.settings.external import ExternalPoolSettings
from infra.program.settings.images import BASE_NAMES, BUILT_FOR, IMAGE_NAMES, PROMETHEUS_IMAGE, VERIFIER_IMAGE, VLLM_IMAGE, TrustSettings
from infra.program.settings.network import PodsSettings
from infra.program.settings.section import SettingsError
from infra.program.settings.storage import Tier
from infra.program.workload import resources, workload

Images = Mapping[str, pulumi.Output[str]]
"""Name of an image to its reference."""


def _tier(tier: Tier, class_name: str) -> c.TierArgs:
    return c.TierArgs(
        provisioner=tier.provisioner,
        size=tier.size,
        parameters=tier.parameters,
        mount_options=tier.mount_options,
        class_name=class_name,
    )


def check_bases(settings: Settings) -> None:
    """In production an update builds on bases by digest alone. Raises SettingsError."""
    if settings.images.builder != "prebuilt" and settings.governance.production:
        require_pinned_bases(f"modelfleet:images.builder: got {settings.images.builder}, and", built(settings))


def require_pinned_bases(got: str, images: Sequence[str]) -> None:
    """A tag is another base tomorrow. Raises SettingsError, whose message begins with `got`."""
    from images.pins import unpinned  # noqa: PLC0415 (a client of registries, which only this needs)

    if found := unpinned(images):
        want = "want each by digest in production; run make pins, look at the change, and commit it"
        raise SettingsError(f"{got} no digest of {', '.join(found)} in images/pins.toml, {want}")


def built(settings: Settings) -> list[str]:
    """The images that an update builds: those that the stack runs, and on GPU nodes the bases, for services of other teams too.

    A verifier is not among them: what it wants signed is built and signed before the update.
    """
    prometheus = [PROMETHEUS_IMAGE] if settings.monitoring.prometheus else []
    vllm = [VLLM_IMAGE] if any(server.engine == "vllm" for server in settings.model_servers) else []
    return [*IMAGE_NAMES, *prometheus, *(BASE_NAMES if settings.gpu.enabled else ()), *vllm]


def images(settings: Settings) -> c.RuntimeImagesArgs:
    return c.RuntimeImagesArgs(
        builder=settings.images.builder,
        registry=settings.images.registry,
        source=ROOT,
        refs=settings.images.refs,
        images=None if settings.images.builder == "prebuilt" else built(settings),
        platform=settings.images.platform or BUILT_FOR,
        builder_name=settings.images.builder_name,
        build=settings.cluster.render_to is None,
        registry_auth=inputs.registry_auth(),
    )


def governance(settings: Settings) -> c.GovernanceArgs:
    limits, gpu = settings.governance, settings.gpu
    own = gpu.priority_classes
    return c.GovernanceArgs(
        namespace=settings.cluster.namespace,
        gpu_quota=limits.gpu_quota,
        gpu_resource=gpu.resource,
        gpu_device_class=device_class(gpu.sharing.profile) if gpu.allocation == "dra" else None,
        gpu_reserved=settings.serving_gpus,
        cpu=limits.cpu,
        memory=limits.memory,
        ephemeral_storage=limits.ephemeral_storage,
        pods=limits.pods,
        claims=limits.claims,
        storage=limits.storage,
        load_balancers=int(settings.api_server.service_type == "LoadBalancer"),
        retain=settings.storage.retain,
        batch_priority_class=own.batch if own else settings.cluster.wide(BATCH_PRIORITY),
        registry_auth=inputs.registry_auth(),
    )


def image_trust(
    settings: Settings, trust: TrustSettings, namespace: pulumi.Input[str], images: Images, runtime: c.GpuRuntime
) -> c.ImageTrustArgs:
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
        debug_containers=not settings.governance.production,
        dns=_dns(settings),
        prefix=settings.cluster.wide(""),
        replicas=trust.replicas,
        priority_class=runtime.gateway_priority_class,
        resources=resources(trust.resources),
        workload=workload(settings, "image-verifier"),
    )


def _dns(settings: Settings) -> c.DnsArgs:
    found = settings.network.dns
    return c.DnsArgs(pods=c.PodsArgs(namespace=found.namespace, labels=found.pod_labels), port=found.port, cidrs=found.cidrs)


def _pods(wanted: Sequence[PodsSettings]) -> list[c.PodsArgs]:
    return [c.PodsArgs(namespace=each.namespace, labels=each.labels) for each in wanted]


def _pool(pool: ExternalPoolSettings) -> c.PoolArgs:
    pods = c.PodsArgs(namespace=pool.pods.namespace, labels=pool.pods.labels) if pool.pods else None
    return c.PoolArgs(cidrs=pool.cidrs, port=pool.port, pods=pods, pods_port=pool.pods.port if pool.pods else None)


def network(settings: Settings, namespace: pulumi.Input[str]) -> c.NetworkArgs:
    prometheus = settings.monitoring.prometheus
    way_in = settings.api_server.way_in
    return c.NetworkArgs(
        namespace=namespace,
        client_cidrs=settings.api_server.admitted_cidrs,
        client_pods=_pods([*settings.network.clients, *(way_in.proxies if way_in else [])]),
        dns=_dns(settings),
        prometheus_namespace=settings.monitoring.prometheus_namespace,
        origins=delivery.origins(settings),
        origins_have_names=delivery.has_names(settings),
        pools=[_pool(pool) for pool in settings.external_pools.values()],
        kubernetes_cidrs=list(dict.fromkeys(cidr for each in settings.scales.values() for cidr in each.kubernetes_cidrs)),
        prometheus=prometheus is not None,
        prometheus_clients=_pods(prometheus.clients) if prometheus else (),
        model_servers=settings.server_components,
        contexts_are_probed=settings.fleet.fixed_replicas is not None,
    )


def gpu_runtime(settings: Settings, namespace: pulumi.Input[str]) -> c.GpuRuntimeArgs:
    gpu, strategy = settings.gpu, settings.gpu.sharing.strategy
    sharing, claim, own = None, None, gpu.priority_classes
    if gpu.allocation == "device-plugin" and strategy != "none":
        sharing = c.SharingArgs(strategy=strategy, operator_namespace=gpu.operator_namespace, replicas=gpu.sharing.replicas)
    if gpu.allocation == "dra" and settings.fleet.gpus_per_pod:
        claim = c.ClaimArgs(namespace=namespace, count=settings.fleet.gpus_per_pod, mig_profile=gpu.sharing.profile)
    return c.GpuRuntimeArgs(
        enabled=gpu.enabled,
        create_runtime_class=gpu.create_runtime_class,
        runtime_class=settings.runtime_class,
        handler=gpu.handler,
        nodes=gpu.nodes,
        priority=gpu.priority,
        prefix=settings.cluster.wide(""),
        overhead={"cpu": gpu.overhead.cpu, "memory": gpu.overhead.memory},
        sharing=sharing,
        claim=claim,
        priority_classes=c.PriorityClassesArgs(gateway=own.gateway, serving=own.serving, batch=own.batch) if own else None,
    )


def storage(settings: Settings, namespace: pulumi.Input[str]) -> c.StorageArgs:
    tiers = settings.storage
    hot, shared = _tier(tiers.hot, settings.hot_class), _tier(tiers.shared, settings.shared_class)
    return c.StorageArgs(
        namespace=namespace,
        hot=hot,
        shared=shared,
        retain=tiers.retain,
        keep_copies=settings.keeps_copies,
        shared_access_mode=tiers.shared.access_mode,
        shared_claim=tiers.shared.claim,
    )
