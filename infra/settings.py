"""The stack's configuration: one frozen section for each `modelfleet:` key, checked before any resource exists.

Defaults live here alone; `Pulumi.<stack>.yaml` holds what differs. docs/configuration.md describes every key.
"""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from cryptography import x509
from pydantic import Field, ValidationError, model_validator

from infra import constraints, refusals
from infra.gpu_settings import GpuSettings
from infra.model_settings import KEEP_ALIVE, DeliverySettings, ModelSettings
from infra.section import PROJECT, Bytes, Cidr, Cores, DnsLabel, ModelName, Resources, Section, SettingsError, quantity

__all__ = ["IMAGE_NAMES", "PROJECT", "Resources", "Settings", "SettingsError", "Tier", "parse", "quantity"]

IMAGE_NAMES = ("ollama", "ollama-agent", "model-sync", "models", "model-server", "cache-server", "api-server", "metrics-exporter")
VERIFIER_IMAGE = "image-verifier"
"""Needed with images.trust alone."""
BASE_NAMES = ("cuda-base", "python-base")
"""Bases for services of other teams; the stack itself runs none."""


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
    registries: list[Annotated[str, Field(pattern=r"^[a-z0-9.-]+(:[0-9]{1,5})?$")]] = Field(default=[])
    """Hosts of registries, with a port where it is not 443, that images of the namespace may come from; empty is any. Docker Hub is
    registry-1.docker.io."""
    ca_bundle: str = ""
    """Authorities of your registries' certificates in PEM, beside the public ones, for reading signatures. Nodes have their own."""
    replicas: int = Field(default=2, ge=1, le=16)
    """Verifiers; while none answers, no pod starts."""
    resources: Resources = Resources(cpu="50m", memory="128Mi")

    @model_validator(mode="after")
    def _authorities_are_certificates(self) -> Self:
        """A rule of the section, so that what stands there instead, such as a private key, is not shown."""
        try:
            found = x509.load_pem_x509_certificates(self.ca_bundle.encode()) if self.ca_bundle else []
        except ValueError:
            found = []
        if self.ca_bundle and (not found or len(found) != self.ca_bundle.count("-----BEGIN ")):
            raise ValueError(
                "caBundle: got something else, want certificates in PEM; take those of the authorities that your registries have"
            )
        return self


class ImagesSettings(Section):
    builder: Literal["prebuilt", "docker-build", "docker"] = "prebuilt"
    """Take images by digest, or build them with buildx, or with a Docker daemon."""
    registry: str = Field(default="modelfleet", pattern=r"^[a-z0-9][a-z0-9._:/-]{0,199}$")
    """Prefix of every repository that is built."""
    refs: dict[str, str] = Field(default={})
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
                problems.append(f"refs.{refusals.key(name)}: got an unknown image, want one of {known}; correct the name")
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
    provisioner: str = Field(pattern=r"^[a-z0-9]([a-z0-9./-]{0,198}[a-z0-9])?$")
    """The CSI driver."""
    size: Bytes
    """Size of one claim."""
    parameters: dict[str, str] = Field(default={})
    """Parameters of the StorageClass, as the driver documents them."""
    mount_options: list[str] = Field(default=[])
    """For example nfsvers=4.1."""


class StorageSettings(Section):
    hot: Tier
    """Node-local, one claim a replica: StorageClass local-nvme."""
    shared: Tier
    """ReadWriteMany, one claim for the fleet: StorageClass shared-models."""
    retain: bool = True
    """Keep models (claims, volumes, namespace) when the stack is destroyed."""


class GovernanceSettings(Section):
    production: bool = False
    """Refuse what a production fleet must not have: single replicas, secrets in plain text, models that go with the stack, an API server
    open to the internet, GPU shares without isolation. Images are immutable in every stack: by digest, or built."""
    gpu_quota: int = Field(default=0, ge=0, le=1024)
    """GPUs, shares or MIG partitions that the namespace may request together."""
    cpu: Cores = "32"
    """Sum of CPU requests in the namespace."""
    memory: Bytes = "128Gi"
    """Sum of memory requests in the namespace."""
    ephemeral_storage: Bytes = "64Gi"
    """Sum of requests for the nodes' own disk: logs and scratch."""
    pods: int = Field(default=100, ge=10, le=1000)
    """Pods of the namespace."""
    claims: int = Field(default=20, ge=2, le=1000)
    """Persistent volume claims of the namespace, also of replicas that are gone."""
    storage: Bytes = "2Ti"
    """Sum of what the claims request."""


class ScaleToZeroSettings(Section):
    idle_minutes: int = Field(default=15, ge=1, le=1440)
    """Without a request for so long, the fleet goes to zero servers; the next request waits for their start."""
    kubernetes_cidrs: list[Cidr] = Field(min_length=1)
    """Addresses of the cluster's API server, where the activator scales the fleet: kubectl get endpoints kubernetes."""


class FleetSettings(Section):
    replicas: int = Field(default=1, ge=1, le=64)
    """Ollama servers; with an autoscaler, the most that it may make."""
    autoscaled: bool = False
    """An autoscaler of yours sets the number of servers: the stack leaves it alone. docs/gateway.md has the metric."""
    scale_to_zero: ScaleToZeroSettings | None = None
    """An activator of ours scales between zero and `replicas`; requests wait at the API server meanwhile."""
    gpus_per_pod: int = Field(default=0, ge=0, le=8)
    """GPUs of one server; at most one where GPUs are shared or partitioned."""
    context_length: int = Field(default=32768, ge=2048, le=1_048_576)
    """Tokens per request that any model may have; Ollama's own default depends on the GPU, so it is always set."""
    min_context: int = Field(default=16384, ge=512, le=1_048_576)
    """Tokens that the running servers must hold for every model, or the deployment fails. OpenHands refuses less than 16384."""
    num_parallel: int = Field(default=1, ge=1, le=64)
    """Requests that one model serves at once; memory for context grows with it."""
    keep_alive: str = Field(default="-1", pattern=KEEP_ALIVE)
    """How long an idle model stays loaded; -1 is for ever."""
    max_queue: int = Field(default=16, ge=1, le=512)
    """Requests that may wait for a model to load."""
    drain_seconds: int = Field(default=600, ge=30, le=86400)
    """How long a replica that has to stop waits for its last answers: the longest answer that no rollout cuts."""
    prompt_cache: Bytes = "8Gi"
    """Host memory that each loaded model may keep old prompts in (llama.cpp's own default)."""
    resources: Resources

    @property
    def fixed_replicas(self) -> int | None:
        """None where an autoscaler, yours or ours, owns the number."""
        return None if self.autoscaled or self.scale_to_zero else self.replicas


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
    max_memory: Bytes
    """What is evicted beyond."""
    eviction_policy: Literal["allkeys-lru", "allkeys-lfu", "volatile-lru", "noeviction"] = "allkeys-lru"
    """Which entries go first."""
    resources: Resources


class ApiServerSettings(Section):
    replicas: int = Field(default=2, ge=1, le=64)
    """API servers; with an autoscaler, the most that it may make."""
    autoscaled: bool = False
    """An autoscaler of yours sets the number of API servers: the stack leaves it alone."""
    hold_seconds: int = Field(default=0, ge=0, le=3600)
    """Longest wait of a request while no server has its model; 0 refuses at once, except with fleet.scaleToZero: 600."""
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How clients outside the cluster get in."""
    node_port: int | None = Field(default=None, ge=30000, le=32767)
    """The port on every node, for NodePort."""
    max_in_flight: int = Field(default=4, ge=1, le=1024)
    """Requests at once to one upstream address; more get 429 with Retry-After."""
    client_cidrs: list[Cidr] = Field(default=["0.0.0.0/0"], min_length=1)
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
    alert_rules: Literal["config-map", "prometheus-rule"] = "config-map"
    """Alert rules as a file in a ConfigMap, or as an object of the Prometheus operator, whose CRDs must then be there."""
    resources: Resources


class Settings(Section):
    """All sections, and the rules that hold between them (infra/constraints.py)."""

    cluster: ClusterSettings
    images: ImagesSettings
    storage: StorageSettings
    gpu: GpuSettings = GpuSettings()
    governance: GovernanceSettings = GovernanceSettings()
    models: list[ModelSettings] = Field(min_length=1, max_length=32)
    """The models of the fleet, in the order of routes and outputs."""
    delivery: DeliverySettings = DeliverySettings()
    fleet: FleetSettings
    model_server: ModelServerSettings
    cache: CacheSettings
    api_server: ApiServerSettings
    monitoring: MonitoringSettings

    @property
    def model_names(self) -> list[str]:
        return [model.name for model in self.models]

    def context_length(self, model: ModelSettings) -> int:
        """Tokens that a request to the model may have."""
        return model.context_length or self.fleet.context_length

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = constraints.problems(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self


def parse(document: Mapping[str, Any], secret: Collection[str] = ()) -> Settings:
    """Settings from section name to value; what has the wrong form in one of the sections `secret` is not echoed.

    Raises SettingsError with every problem that was found.
    """
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise SettingsError("\n".join(refusals.lines(error, document, Settings, secret))) from None
