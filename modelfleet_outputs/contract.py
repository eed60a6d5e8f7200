"""The contract: the one definition that the fleet's program writes by and its consumers read by."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

VERSION = 1
"""Raised when a field is removed or means something else. Within a version only optional fields are added."""


class OutputsError(Exception):
    """The outputs are not of this contract; one line a problem, `<path>: got X, want Y; do Z`."""


class _Contract(BaseModel):
    # A newer fleet of the same version may export fields that this reader does not know. A field that may be null has null as its
    # default: a StackReference leaves null fields out.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=True)


class ModelOutput(_Contract):
    """A model that the fleet answers for."""

    id: str
    """What a client puts into the request's `model`."""
    context_length: int
    """Tokens of prompt and answer together that its server was asked to hold."""
    effective_context: int | None = None
    """Tokens that its running servers allocated, the smallest of all replicas; null where nobody asked: the model server's, previews."""
    warm_conversations: int | None = None
    """Conversations of full context whose prompts its servers keep; null where the fleet is older than this field."""
    warm_tokens: int | None = None
    """Tokens of prompts that its servers keep, of conversations of any length."""
    turns_per_minute: float | None = None
    """Turns of warm conversations that its servers answer at most, of the shape in docs/models.md; null where no speed was measured."""


class StorageClasses(_Contract):
    """StorageClasses of the model store."""

    hot: str
    """Node-local, one volume a replica."""
    shared: str
    """Shared by all replicas."""


class FleetOutputs(_Contract):
    """The stack output `fleet`."""

    version: int
    """Version of this contract."""
    namespace: str
    """Kubernetes namespace of the fleet."""
    service: str
    """Name of the API server's Service."""
    port: int
    """Port of that Service."""
    node_port: int | None = None
    """Port of every node that leads there, where the Service is of type NodePort and the stack chose one."""
    load_balancer: str | None = None
    """Address of the Service's load balancer; null without one, and until the provider has assigned it."""
    base_path: str
    """Where the OpenAI API starts, below the Service's address."""
    url: str
    """Base URL of the OpenAI API for clients inside the cluster, `base_path` included."""
    public_url: str | None = None
    """Base URL of the OpenAI API for clients outside of the cluster; null where the fleet names no host."""
    authority: str | None = None
    """Certificate in PEM of the authority that signed the API server's; null without TLS, and where it is a public one."""
    models: list[ModelOutput]
    """The fleet's models first, in the order of the configuration."""
    aliases: dict[str, str] = {}
    """Other names that a client can put there, to the id of the model that most of their conversations get."""
    images: dict[str, str]
    """Image name to the reference that runs, by digest."""
    storage_classes: StorageClasses
    """Names of the StorageClasses."""
    runtime_class: str | None = None
    """RuntimeClass of GPU pods; null where the fleet uses no GPU."""
    metrics: dict[str, str]
    """Component to the URL of its Prometheus metrics, inside the cluster. Only what is behind a Service of its own; API servers and Ollama
    servers have a port in each pod, which Prometheus finds by `monitoring.scrape` (docs/metrics.md)."""

    @property
    def scheme(self) -> str:
        """`https` with TLS at the API server, else `http`: of `url`, of ports of nodes, and of forwarded ports."""
        return self.url.partition(":")[0]


def parse(document: Any) -> FleetOutputs:
    """The stack output `fleet` as an object. Raises OutputsError on another version or form."""
    version = document.get("version") if isinstance(document, dict) else None
    if version != VERSION:
        raise OutputsError(f"fleet.version: got {version!r}, want {VERSION}; install the modelfleet-outputs of the fleet's version")
    try:
        return FleetOutputs.model_validate(document)
    except ValidationError as error:
        lines = [f"fleet.{'.'.join(map(str, each['loc']))}: got {each['msg'].lower()}" for each in error.errors(include_url=False)]
        raise OutputsError("\n".join(f"{line}, want the form of version {VERSION}; update the fleet" for line in lines)) from None
