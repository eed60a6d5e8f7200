"""The stack's configuration: one frozen section for each `modelfleet:` key, checked before any resource exists.

Defaults live here alone; `Pulumi.<stack>.yaml` holds what differs. docs/configuration.md describes every key.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

PROJECT = "modelfleet"
IMAGE_NAMES = ("ollama", "models", "model-server", "cache-server", "api-server", "metrics-exporter")
VERIFIER_IMAGE = "image-verifier"
"""Needed with images.trust alone."""
BASE_NAMES = ("cuda-base", "python-base")
"""Bases for services of other teams; the stack itself runs none."""
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class SettingsError(Exception):
    """Every problem of the configuration, one a line, in the form `<path>: got X, want Y; do Z`."""


def quantity(text: str) -> float:
    """The value of a Kubernetes quantity such as `100m` or `2Gi`. Raises ValueError on anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", text)
    if match is None:
        raise ValueError("want a Kubernetes quantity such as 500m, 2 or 4Gi; write it as a string")
    return float(match[1]) * _UNITS[match[2] or ""]


def _checked_quantity(text: str) -> str:
    quantity(text)
    return text


Quantity = Annotated[str, AfterValidator(_checked_quantity)]
DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/-]*:[A-Za-z0-9._-]+$", description="name:tag")]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Resources(Section):
    cpu: Quantity
    """CPU request in cores; no limit, because a throttled server is slower than a busy one."""
    memory: Quantity
    """Memory request and limit."""


class ClusterSettings(Section):
    context: str | None = None
    """Context of the kubeconfig to deploy to; never the current one by accident."""
    identity: str | None = None
    """UID of the cluster's kube-system namespace: another cluster under the same context name is refused."""
    namespace: DnsLabel = "modelfleet"
    """Where everything of the stack lives; the stack owns it."""
    render_to: str | None = None
    """Absolute directory: write YAML there and talk to no cluster."""

    @model_validator(mode="after")
    def _names_one_target(self) -> Self:
        if self.render_to is not None:
            if not self.render_to.startswith("/"):
                raise ValueError(f"renderTo: got {self.render_to!r}, want an absolute directory; write the full path")
            return self
        if not self.context:
            raise ValueError("context: got nothing, want a context of your kubeconfig; see kubectl config get-contexts")
        if not self.identity:
            raise ValueError(
                "identity: got nothing, want the UID of that cluster's kube-system namespace; "
                "take it from kubectl get namespace kube-system -o jsonpath={.metadata.uid}"
            )
        return self


class TrustSettings(Section):
    public_keys: str = Field(pattern=r"-----BEGIN PUBLIC KEY-----")
    """Public keys in PEM, as cosign generate-key-pair writes them; a signature by any of them counts."""
    mirror: str = Field(default="", pattern=r"^(https?://[^/\s]+)?$")
    """Registry that has the signatures of every image; empty: the one in the image's name."""
    replicas: int = Field(default=2, ge=1, le=16)
    """Verifiers; while none answers, no pod starts."""
    resources: Resources = Resources(cpu="50m", memory="128Mi")


class ImagesSettings(Section):
    builder: Literal["prebuilt", "docker-build", "docker"] = "prebuilt"
    """Take images by digest, or build them with buildx, or with a Docker daemon."""
    registry: str = "modelfleet"
    """Prefix of every repository that is built."""
    refs: dict[str, str] = {}
    """Image name to `repository@sha256:…`, for the builder `prebuilt`."""
    builder_name: str | None = None
    """The buildx builder for `docker-build`; the default one when unset."""
    platform: Literal["linux/amd64", "linux/arm64"] = "linux/amd64"
    """What is built for."""
    trust: TrustSettings | None = None
    """Refuse pods whose images carry no cosign signature by one of these keys."""

    @model_validator(mode="after")
    def _refs_fit_builder(self) -> Self:
        problems: list[str] = []
        for name, ref in self.refs.items():
            if name not in (*IMAGE_NAMES, *BASE_NAMES, VERIFIER_IMAGE):
                known = ", ".join((*IMAGE_NAMES, *BASE_NAMES, VERIFIER_IMAGE))
                problems.append(f"refs.{name}: got an unknown image, want one of {known}; correct the name")
            elif not re.fullmatch(r"[^\s@]+@sha256:[0-9a-f]{64}", ref):
                problems.append(f"refs.{name}: got {ref!r}, want repository@sha256:<64 hex digits>; pin the digest")
        needed = (*IMAGE_NAMES, VERIFIER_IMAGE) if self.trust is not None else IMAGE_NAMES
        missing = [name for name in needed if name not in self.refs]
        if self.builder == "prebuilt" and missing:
            problems.append(f"refs.{missing[0]}: got nothing, want a reference for {', '.join(missing)}; add them or set images.builder")
        if self.builder != "prebuilt" and self.refs:
            problems.append(f"refs: got references, want none with builder {self.builder}; remove refs or set builder to prebuilt")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Tier(Section):
    provisioner: str
    """The CSI driver."""
    size: Quantity
    """Size of one claim."""
    parameters: dict[str, str] = {}
    """Parameters of the StorageClass, as the driver documents them."""
    mount_options: list[str] = []
    """For example nfsvers=4.1."""


class StorageSettings(Section):
    hot: Tier
    """Node-local, one claim a replica: StorageClass local-nvme."""
    shared: Tier
    """ReadWriteMany, one claim for the fleet: StorageClass shared-models."""
    retain: bool = True
    """Keep models (claims, volumes, namespace) when the stack is destroyed."""


class GpuSettings(Section):
    enabled: bool = False
    """Whether the cluster has GPU nodes."""
    runtime_class: DnsLabel = "nvidia"
    """Name of the RuntimeClass that GPU pods use."""
    handler: DnsLabel = "nvidia"
    """Name of the runtime handler in the node's containerd or CRI-O configuration."""
    create_runtime_class: bool = True
    """False where the GPU operator owns the RuntimeClass."""
    priority: int = Field(default=1_000_000, ge=1, le=1_000_000_000)
    """Value of PriorityClass gpu-priority; Kubernetes reserves what is above 10^9."""
    resource: Literal["nvidia.com/gpu", "nvidia.com/gpu.shared"] = "nvidia.com/gpu"
    """Extended resource of one GPU, or of one share of a time-sliced one."""


class GovernanceSettings(Section):
    gpu_quota: int = Field(default=0, ge=0, le=1024)
    """GPUs that the namespace may request together."""
    cpu: Quantity = "32"
    """Sum of CPU requests in the namespace."""
    memory: Quantity = "128Gi"
    """Sum of memory requests in the namespace."""
    pods: int = Field(default=100, ge=10, le=1000)
    """Pods of the namespace."""


class FleetSettings(Section):
    replicas: int = Field(default=1, ge=1, le=64)
    """Ollama servers."""
    gpus_per_pod: int = Field(default=0, ge=0, le=8)
    """Whole GPUs (or shares) of one server."""
    models: list[ModelName] = Field(min_length=1)
    """Names in the model store; each becomes a model id of the API."""
    context_length: int = Field(default=32768, ge=2048, le=1_048_576)
    """Tokens per request; Ollama's own default depends on the GPU, so it is always set."""
    num_parallel: int = Field(default=1, ge=1, le=64)
    """Requests that one model serves at once; memory for context grows with it."""
    keep_alive: str = Field(default="-1", pattern=r"^(-1|\d+(ms|s|m|h))$")
    """How long an idle model stays loaded; -1 is for ever."""
    max_queue: int = Field(default=16, ge=1, le=512)
    """Requests that may wait for a model to load."""
    resources: Resources


class ModelServerSettings(Section):
    replicas: int = Field(default=1, ge=1, le=16)
    """Model servers."""
    model: ModelName
    """A model of the store."""
    model_id: str = Field(pattern=r"^[A-Za-z0-9._:/-]{1,100}$")
    """The id that clients use for it; differs from the fleet's ids."""
    context_length: int = Field(default=4096, ge=512, le=1_048_576)
    """Tokens per request; longer ones are refused."""
    parallel: int = Field(default=2, ge=1, le=64)
    """Requests that are generated at once."""
    max_queue: int = Field(default=16, ge=0, le=512)
    """Requests that may wait; more get 503."""
    resources: Resources


class CacheSettings(Section):
    max_memory: Quantity
    """What is evicted beyond."""
    eviction_policy: Literal["allkeys-lru", "allkeys-lfu", "volatile-lru", "noeviction"] = "allkeys-lru"
    """Which entries go first."""
    resources: Resources


class ApiServerSettings(Section):
    replicas: int = Field(default=2, ge=1, le=64)
    """API servers."""
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How clients outside the cluster get in."""
    node_port: int | None = Field(default=None, ge=30000, le=32767)
    """The port on every node, for NodePort."""
    max_in_flight: int = Field(default=4, ge=1, le=1024)
    """Requests at once to one upstream address; more get 429 with Retry-After."""
    client_cidrs: list[str] = ["0.0.0.0/0"]
    """Who may connect; clients still need a key."""
    resources: Resources

    @model_validator(mode="after")
    def _port_fits_type(self) -> Self:
        if self.node_port is not None and self.service_type != "NodePort":
            raise ValueError(f"nodePort: got {self.node_port} with serviceType {self.service_type}, want it with NodePort only; remove it")
        return self


class MonitoringSettings(Section):
    prometheus_namespace: DnsLabel = "monitoring"
    """Only pods of this namespace may scrape."""
    resources: Resources


class Settings(Section):
    """All sections, and the rules that hold between them."""

    cluster: ClusterSettings
    images: ImagesSettings
    storage: StorageSettings
    gpu: GpuSettings = GpuSettings()
    governance: GovernanceSettings = GovernanceSettings()
    fleet: FleetSettings
    model_server: ModelServerSettings
    cache: CacheSettings
    api_server: ApiServerSettings
    monitoring: MonitoringSettings

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        fleet, problems = self.fleet, list[str]()
        gpus = fleet.replicas * fleet.gpus_per_pod
        if fleet.gpus_per_pod and not self.gpu.enabled:
            problems.append(f"fleet.gpusPerPod: got {fleet.gpus_per_pod}, want 0 while gpu.enabled is false; enable gpu or set it to 0")
        if gpus > self.governance.gpu_quota:
            problems.append(
                f"fleet: got {gpus} GPUs (replicas {fleet.replicas} x gpusPerPod {fleet.gpus_per_pod}), want at most "
                f"governance.gpuQuota {self.governance.gpu_quota}; raise the quota or lower the fleet"
            )
        if self.model_server.model not in fleet.models:
            problems.append(
                f"modelServer.model: got {self.model_server.model}, want one of fleet.models {', '.join(fleet.models)}; add it there"
            )
        if self.model_server.model_id in fleet.models:
            problems.append(f"modelServer.modelId: got {self.model_server.model_id}, want an id that no fleet model has; choose another")
        if len(set(fleet.models)) != len(fleet.models):
            problems.append(f"fleet.models: got {', '.join(fleet.models)}, want each name once; remove the repetition")
        if quantity(self.cache.max_memory) >= quantity(self.cache.resources.memory):
            problems.append(
                f"cache.maxMemory: got {self.cache.max_memory}, want less than cache.resources.memory "
                f"{self.cache.resources.memory}; leave a tenth for the server itself"
            )
        requested = self._requests()
        for name, limit, unit, suffix in (("cpu", self.governance.cpu, 1, ""), ("memory", self.governance.memory, 2**30, "Gi")):
            if requested[name] > quantity(limit):
                total = f"{requested[name] / unit:.1f}{suffix}"
                problems.append(
                    f"governance.{name}: got {limit}, want at least {total}, the sum of all requests; raise it or lower replicas"
                )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _requests(self) -> dict[str, float]:
        """Cores and bytes that all workloads ask for together; the writer Job asks for what model_sync needs."""
        parts = [
            (self.fleet.replicas, self.fleet.resources),
            (self.model_server.replicas, self.model_server.resources),
            (1, self.cache.resources),
            (self.api_server.replicas, self.api_server.resources),
            (1, self.monitoring.resources),
        ]
        return {
            "cpu": sum(count * quantity(each.cpu) for count, each in parts),
            "memory": sum(count * quantity(each.memory) for count, each in parts),
        }


def _field_names(model: type[BaseModel]) -> list[str]:
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _section_type(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that the parent of an unknown key belongs to."""
    model: type[BaseModel] = Settings
    for part in loc[:-1]:
        found = next((field for name, field in model.model_fields.items() if part in (field.alias, name)), None)
        annotation = found.annotation if found is not None else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return model


def _line(error: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    loc: tuple[int | str, ...] = error["loc"]
    path = f"{PROJECT}:" + ".".join(str(part) for part in loc)
    value: Any = document
    for part in loc:
        if isinstance(value, list) and isinstance(part, int):
            value = value[part]
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    if error["type"] == "missing":
        return f"{path}: got nothing, want a value; set it in Pulumi.<stack>.yaml (docs/configuration.md)"
    if error["type"] == "extra_forbidden":
        return f"{path}: got an unknown key, want one of {', '.join(_field_names(_section_type(loc)))}; correct or remove it"
    message = str(error["msg"]).removeprefix("Value error, ")
    if (error["type"] == "value_error" and isinstance(value, Mapping)) or not loc:
        prefix = path if loc else f"{PROJECT}:"
        return "\n".join(f"{prefix}{'.' if loc else ''}{line}" for line in message.splitlines())
    if error["type"] == "value_error":
        return f"{path}: got {value!r}, {message}"
    rule = message.removeprefix("Input should be ")
    return f"{path}: got {value!r}, want {rule[0].lower()}{rule[1:]}; correct it (docs/configuration.md)"


def parse(document: Mapping[str, Any]) -> Settings:
    """Settings from section name to object. Raises SettingsError with every problem that was found."""
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise SettingsError("\n".join(_line(each, document) for each in error.errors(include_url=False))) from None
