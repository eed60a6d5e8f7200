"""The composition: which components there are, and what each of them is made from and after."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import pulumi
import pulumi_kubernetes as k8s

import components as c
from components.monitoring import scraped
from components.registry_auth import pulls
from infra.program import arguments, delivery, foundations, ownership
from infra.program.outputs import outputs
from infra.program.settings import Settings, inputs
from infra.program.settings.cluster import ClusterSettings
from infra.program.settings.section import SettingsError

Transformation = Callable[[pulumi.ResourceTransformationArgs], pulumi.ResourceTransformationResult | None]


def deploy() -> None:
    """The Pulumi program. Ends with one error and exit status 1, before any resource, when the configuration is wrong."""
    guards: list[Transformation] = []
    old_servers: frozenset[str] = frozenset()
    try:
        settings = inputs.load()
        if settings.cluster.render_to is None:
            foundations.check_bases(settings)
            settings, guard, old_servers = _of_its_cluster(settings)
            guards.append(guard.over)
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    build(settings, guards, old_servers)


def _of_its_cluster(settings: Settings) -> tuple[Settings, ownership.Guard, frozenset[str]]:
    """The settings, checked against the cluster that they name, with what only it knows; what guards its objects; and the model servers
    whose Deployments this update replaces. Raises SettingsError.
    """
    from infra.program import cluster  # noqa: PLC0415 (a rendering asks no cluster, and need not import the client)

    objects = cluster.Objects(settings.cluster.context or "", inputs.kubeconfig())
    cluster.check(settings.cluster, objects, cluster.CLAIMS_OF_DEVICES if settings.gpu.allocation == "dra" else cluster.OLDEST)
    cluster.check_classes(settings.storage, objects)
    cluster.check_apis(settings.api_server, objects)
    kept = settings.model_copy(update={"cluster": cluster.with_kept_names(settings.cluster, objects)})
    return kept, ownership.Guard(settings.cluster, objects), cluster.old_servers(settings, objects)


@dataclass(frozen=True)
class _Place:
    """Where components are made."""

    provider: k8s.Provider
    transformations: tuple[Transformation, ...]
    """What every object below every component gets."""

    def after(self, *before: pulumi.Resource | None) -> pulumi.ResourceOptions:
        """Options of a component that is made once `before` are there. None stands for a component that the stack does not have."""
        return pulumi.ResourceOptions(
            providers=[self.provider],
            depends_on=[each for each in before if each is not None],
            transformations=list(self.transformations),
        )


def _provider(target: ClusterSettings) -> k8s.Provider:
    if target.render_to is not None:
        return k8s.Provider("cluster", render_yaml_to_directory=target.render_to)
    content = inputs.kubeconfig()
    kubeconfig = pulumi.Output.secret(json.dumps(content)) if content else None
    return k8s.Provider(
        "cluster",
        context=target.context,
        cluster_identifier=target.identity,
        kubeconfig=kubeconfig,
        # What is not marked as immutable changes in place.
        enable_config_map_mutable=True,
        enable_secret_mutable=True,
    )


@dataclass(frozen=True)
class _Ground:
    """What every workload stands on."""

    place: _Place
    images: foundations.Images
    space: c.Governance
    trust: c.ImageTrust | None
    network: c.Network
    runtime: c.GpuRuntime

    @property
    def namespace(self) -> pulumi.Output[str]:
        return self.space.namespace

    def after(self, *before: pulumi.Resource) -> pulumi.ResourceOptions:
        """Options of a workload that is made once `before` are there.

        No pod is there before the quotas and logins of its namespace, its network policies, and the webhook that checks its images. The
        runtime's classes come first, too: pods name them as plain text, and would be refused without them. When `scale` is
        removed, the policies cut the activator off before the servers are changed, so the activator cannot scale the new ones to zero.
        """
        return self.place.after(self.space, self.trust, self.network, self.runtime, *before)


def _place(settings: Settings, guards: Sequence[Transformation]) -> _Place:
    on_pods = [pulls] if inputs.registry_auth() is not None else []
    on_pods += [scraped] if settings.monitoring.scrape == "annotations" else []
    return _Place(_provider(settings.cluster), (ownership.marks(settings.cluster), *guards, *on_pods))


def _ground(settings: Settings, guards: Sequence[Transformation]) -> _Ground:
    place = _place(settings, guards)
    images = c.RuntimeImages("images", foundations.images(settings)).refs
    space = c.Governance("governance", foundations.governance(settings), place.after())
    network = c.Network("network", foundations.network(settings, space.namespace), place.after(space))
    runtime = c.GpuRuntime("gpu", foundations.gpu_runtime(settings, space.namespace), place.after(space))
    trust = None
    if settings.images.trust is not None:
        args = foundations.image_trust(settings, settings.images.trust, space.namespace, images, runtime)
        trust = c.ImageTrust("image-trust", args, place.after(space, runtime))
    return _Ground(place, images, space, trust, network, runtime)


def build(settings: Settings, guards: Sequence[Transformation] = (), old_servers: Collection[str] = ()) -> None:
    """Register every component. Each gets what it depends on as a value. `guards` see every object before it is created. Each of
    `old_servers` is a model server that a Deployment serves until its replacement is ready."""
    ground = _ground(settings, guards)
    namespace, images, runtime = ground.namespace, ground.images, ground.runtime
    store = c.Storage("storage", foundations.storage(settings, namespace), ground.place.after(ground.space))
    models = c.ModelStore("models", delivery.model_store(settings, namespace, images, store, runtime), ground.after())
    cache = c.CacheServer("cache", arguments.cache(settings, namespace, images), ground.after())
    # Servers of models read what the writer wrote.
    readers = ground.after(store, models.writer)
    fleet = c.OllamaFleet("ollama", arguments.fleet(settings, namespace, images, runtime, store), readers)
    servers = [
        c.ModelServer(
            wanted.component,
            replace(
                arguments.model_server(wanted, settings, namespace, images, runtime, store, cache),
                hands_over=wanted.component in old_servers,
            ),
            readers,
        )
        for wanted in settings.model_servers
    ]
    models.clean_after([fleet, *servers])
    # The first look-up of the API server must find all of them, or it would refuse the first requests.
    api = c.ApiServer("api-server", arguments.api_server(settings, namespace, images, runtime, cache), ground.after(fleet, *servers))
    if settings.scales:
        c.Activator("activator", arguments.activator(settings, namespace, images, runtime), ground.after())
    c.Monitoring("monitoring", arguments.monitoring(settings, namespace, images, runtime, cache), ground.after())
    if settings.monitoring.prometheus is not None:
        wanted = settings.monitoring.prometheus
        c.Prometheus("prometheus", arguments.prometheus(settings, wanted, namespace, images, store), ground.after(store))
    pulumi.export("fleet", outputs(settings, api, fleet, images))
    by_name = inputs.api_keys().apply(lambda keys: {name: str(each["key"]) for name, each in keys.items()})
    # For programs that were written before keys had names.
    pulumi.export("apiKeys", pulumi.Output.secret(by_name.apply(lambda keys: list(keys.values()))))
    pulumi.export("keysByName", pulumi.Output.secret(by_name))
