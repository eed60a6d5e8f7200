"""All sections of a stack's configuration together."""

from typing import Annotated

from pydantic import Field

from components.contract import HOT_CLASS, OLLAMA, SHARED_CLASS
from infra.program.settings.cluster import ClusterSettings
from infra.program.settings.external import POOL, ExternalPoolSettings
from infra.program.settings.fleet import FleetSettings, ScaleSettings
from infra.program.settings.governance import GovernanceSettings
from infra.program.settings.gpu import GpuSettings
from infra.program.settings.images import ImagesSettings
from infra.program.settings.model_servers import ModelServerSettings
from infra.program.settings.models import ALIAS, AliasSettings, DeliverySettings, ModelSettings
from infra.program.settings.network import NetworkSettings
from infra.program.settings.section import Section
from infra.program.settings.services import ApiServerSettings, CacheSettings, MonitoringSettings
from infra.program.settings.storage import StorageSettings
from infra.program.settings.workloads import WorkloadName, WorkloadSettings

NVIDIA = "nvidia"
"""The RuntimeClass of NVIDIA's GPU operator, and the first fleet's own."""


class Sections(Section):
    """Every section by itself. `Settings` adds the rules between them."""

    cluster: ClusterSettings
    images: ImagesSettings
    storage: StorageSettings
    gpu: GpuSettings = GpuSettings()
    governance: GovernanceSettings = GovernanceSettings()
    models: list[ModelSettings] = Field(min_length=1, max_length=32)
    """The models of the fleet, and those of model servers, in the order of routes and outputs."""
    aliases: dict[Annotated[str, Field(pattern=ALIAS)], AliasSettings] = Field(default={}, max_length=64)
    """Other names that clients use for the models, such as those that an agent asks for by itself."""
    external_pools: dict[Annotated[str, Field(pattern=POOL)], ExternalPoolSettings] = Field(default={}, max_length=16)
    """Models of servers that are not the stack's, by the name of their pool: llm-d, KServe, Dynamo, a cloud. docs/pools.md has examples."""
    delivery: DeliverySettings = DeliverySettings()
    fleet: FleetSettings
    model_servers: list[ModelServerSettings] = Field(default=[], max_length=16)
    """Servers of one model each, beside the fleet; at least one. `modelServer`, an object, is the old form of a list of one."""
    cache: CacheSettings
    api_server: ApiServerSettings
    network: NetworkSettings = NetworkSettings()
    monitoring: MonitoringSettings
    workloads: dict[WorkloadName, WorkloadSettings] = Field(default={})
    """Which nodes take the pods of each workload, and who the pods are there. The workloads are `ollama`, `model-server`, `api-server`,
    `cache-server`, `metrics-exporter`, `prometheus`, `model-sync`, `context-probe`, `activator` and `image-verifier`."""

    @property
    def hot_class(self) -> str:
        """StorageClass of the replicas' own claims."""
        return self.storage.hot.class_name or self.cluster.wide(HOT_CLASS)

    @property
    def shared_class(self) -> str:
        """StorageClass of the shared claim."""
        return self.storage.shared.class_name or self.cluster.wide(SHARED_CLASS)

    @property
    def runtime_class(self) -> str:
        """RuntimeClass of GPU pods."""
        own = self.cluster.wide(NVIDIA) if self.gpu.create_runtime_class else NVIDIA
        return own if self.gpu.runtime_class is None else self.gpu.runtime_class

    @property
    def model_names(self) -> list[str]:
        """Of all that are in the store."""
        return [model.name for model in self.models]

    @property
    def fleet_models(self) -> list[ModelSettings]:
        """Those that replicas of the fleet hold, and clients ask for by their names."""
        return [model for model in self.models if model.in_fleet]

    @property
    def writer_reaches(self) -> list[tuple[str, int]]:
        """Hosts and ports that the writer connects to: of sources, and of the proxy in place of those that it leads to."""
        origins, proxy = [model.origin for model in self.models if model.origin], self.delivery.forward_proxy
        if proxy is None or not origins:
            return origins
        return [proxy.origin, *(origin for origin in origins if not proxy.leads_to(origin[0]))]

    @property
    def ids(self) -> list[str]:
        """Names of everything that clients can ask, but for aliases."""
        external = [model.id for pool in self.external_pools.values() for model in pool.models]
        fleet = [model.name for model in self.fleet_models]
        return [*fleet, *(server.model_id for server in self.model_servers), *external]

    @property
    def server_components(self) -> list[str]:
        """What the pods of each model server are called."""
        return [server.component for server in self.model_servers]

    @property
    def scales(self) -> dict[str, ScaleSettings]:
        """How the activator scales, by component; empty without one."""
        fleet = {} if self.fleet.scaling is None else {OLLAMA: self.fleet.scaling}
        return fleet | {server.component: server.scale for server in self.model_servers if server.scale is not None}

    @property
    def keeps_copies(self) -> bool:
        """Whether the volumes of all replicas that were scaled away stay."""
        return self.fleet.keeps_copies and all(server.keeps_copies for server in self.model_servers)

    @property
    def gpu_pods(self) -> int:
        """Pods that have GPUs."""
        fleet = self.fleet.replicas if self.fleet.gpus_per_pod else 0
        return fleet + sum(server.replicas for server in self.model_servers if server.gpus)

    @property
    def serving_gpus(self) -> int:
        """GPUs, shares or partitions of all servers of models."""
        return self.fleet.replicas * self.fleet.gpus_per_pod + sum(server.replicas * server.gpus for server in self.model_servers)

    def model(self, name: str) -> ModelSettings:
        """The model of this name. Raises StopIteration where there is none."""
        return next(model for model in self.models if model.name == name)

    def context_length(self, model: ModelSettings) -> int:
        """Tokens that a request to the model may have."""
        return model.context_length or self.fleet.context_length
