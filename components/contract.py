"""The vocabulary that pods, Services, policies and tests share: names, labels, ports and who may talk to whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PART_OF = "modelfleet"

API_SERVER = "api-server"
MODEL_SERVER = "model-server"
"""The first model server, and in the tables below every one: see `model_server` and `kind_of`."""
CACHE_SERVER = "cache-server"
OLLAMA = "ollama"
METRICS_EXPORTER = "metrics-exporter"
MODEL_WRITER = "model-sync"
CONTEXT_PROBE = "context-probe"
ACTIVATOR = "activator"
"""Scales the fleet and model servers; only with fleet.scale or modelServers.scale, so it is none of COMPONENTS."""
SCALES_VARIABLE = "ACTIVATOR_SCALES"
"""Of the activator's container: what it scales, by StatefulSet, as JSON."""
PROMETHEUS = "prometheus"
"""Of the stack's own; only with monitoring.prometheus, so it is none of COMPONENTS."""
IMAGE_VERIFIER = "image-verifier"
"""Of a namespace of its own, where it answers the cluster's API server."""
COMPONENTS = (API_SERVER, MODEL_SERVER, CACHE_SERVER, OLLAMA, METRICS_EXPORTER, MODEL_WRITER, CONTEXT_PROBE)

PORTS = {
    API_SERVER: 8000,
    MODEL_SERVER: 8080,
    CACHE_SERVER: 6379,
    OLLAMA: 11434,
    METRICS_EXPORTER: 9400,
    IMAGE_VERIFIER: 8443,
    ACTIVATOR: 9467,
    PROMETHEUS: 9090,
}
API_METRICS_PORT = 9464
AGENT_PORT = 9465
"""Of the agent in each Ollama pod: its metrics, and what the context probe reads."""
AGENT_CONTROL_PORT = 9466
"""What the kubelet asks the agent. No policy opens it: who may call /drain takes a replica out of service."""
LOG_LEVELS: Mapping[str, str] = {
    API_SERVER: "API_SERVER_LOG_LEVEL",
    ACTIVATOR: "ACTIVATOR_LOG_LEVEL",
    MODEL_SERVER: "MODEL_SERVER_LOG_LEVEL",
    "cache-keeper": "KEEPER_LOG_LEVEL",
    "ollama-agent": "OLLAMA_AGENT_LOG_LEVEL",
    METRICS_EXPORTER: "EXPORTER_LOG_LEVEL",
    IMAGE_VERIFIER: "VERIFIER_LOG_LEVEL",
}
"""Container to the variable that sets what it says of itself."""
OLLAMA_REPLICAS = "ollama-replicas"
"""Headless Service with every replica's address, ready or not: what a replica lacks is asked of the replica itself."""

HOT_CLASS = "local-nvme"
SHARED_CLASS = "shared-models"
SHARED_CLAIM = "shared-models"
PULL_SECRET = "registry-auth"  # noqa: S105 (a name)
"""Of each namespace with pods, where images come from a registry that asks for a login."""
PRIORITY_CLASS = "gpu-priority"
GATEWAY_PRIORITY = "gateway-priority"
BATCH_PRIORITY = "gpu-batch-priority"
SCAN_RESULT, SCAN_FILE = "scan-result", "scan.json"
"""ConfigMap with what the last scan of the images that run has found, and its key. `make scan` makes it, and no component does."""
GPU_NODES = {"nvidia.com/gpu.present": "true"}
"""Label of nodes with GPUs; GPU feature discovery sets it."""
ARCHITECTURE = "kubernetes.io/arch"
"""Label of every node, set by its kubelet."""
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
"""Labels of a namespace that takes pods under the Pod Security Standard `restricted` alone."""
USER_ID = 10001
"""One user for every pod: files in the model store are readable to all of them."""


def type_token(name: str) -> str:
    """A component's type in the state file. A renamed component keeps an Alias to its old token, or its children are replaced."""
    return f"{PART_OF}:index:{name}"


def model_server(name: str) -> str:
    """The component of the model server `name`: it has objects, pods and a policy of its own."""
    return name if name == MODEL_SERVER else f"{MODEL_SERVER}-{name}"


def kind_of(component: str) -> str:
    """What a component is in the tables below, where one line is of every model server."""
    return MODEL_SERVER if component.startswith(f"{MODEL_SERVER}-") else component


def labels(component: str) -> dict[str, str]:
    """Labels of every object of a component."""
    return selector(component) | {"app.kubernetes.io/part-of": PART_OF, "app.kubernetes.io/managed-by": "pulumi"}


def selector(component: str) -> dict[str, str]:
    """The one label that Services, policies and budgets select by."""
    return {"app.kubernetes.io/name": component}


@dataclass(frozen=True)
class Edge:
    """An allowed connection between two components; everything else is denied."""

    source: str
    target: str
    port: int


SCRAPED = {
    API_SERVER: API_METRICS_PORT,
    MODEL_SERVER: PORTS[MODEL_SERVER],
    METRICS_EXPORTER: PORTS[METRICS_EXPORTER],
    OLLAMA: AGENT_PORT,
}
"""Component to the port that a Prometheus reads, the stack's own or another."""
PORT_NAMES = {component: "http" if component == MODEL_SERVER else "metrics" for component in SCRAPED}
"""Component to what its pods call that port."""
EDGES = (
    Edge(API_SERVER, MODEL_SERVER, PORTS[MODEL_SERVER]),
    Edge(API_SERVER, OLLAMA, PORTS[OLLAMA]),
    Edge(API_SERVER, CACHE_SERVER, PORTS[CACHE_SERVER]),
    Edge(MODEL_SERVER, CACHE_SERVER, PORTS[CACHE_SERVER]),
    Edge(METRICS_EXPORTER, CACHE_SERVER, PORTS[CACHE_SERVER]),
    Edge(CONTEXT_PROBE, OLLAMA, AGENT_PORT),
    Edge(ACTIVATOR, API_SERVER, API_METRICS_PORT),
    *(Edge(PROMETHEUS, component, port) for component, port in SCRAPED.items()),
)
"""Of everything that may be there; an edge is open where both of its ends are deployed."""


def every(component: str, servers: Sequence[str]) -> Sequence[str]:
    """The components that a name in the tables stands for, where `servers` are the model servers that there are."""
    return servers if component == MODEL_SERVER else (component,)


def edges(servers: Sequence[str] = (MODEL_SERVER,)) -> list[Edge]:
    """EDGES of a stack with these model servers."""
    return [
        Edge(source, target, edge.port)
        for edge in EDGES
        for source in every(edge.source, servers)
        for target in every(edge.target, servers)
    ]


def metric_ports(servers: Sequence[str] = (MODEL_SERVER,)) -> dict[str, int]:
    """SCRAPED of a stack with these model servers."""
    return {component: port for name, port in SCRAPED.items() for component in every(name, servers)}


DNS_CLIENTS = (API_SERVER, MODEL_SERVER, METRICS_EXPORTER, CONTEXT_PROBE, ACTIVATOR, PROMETHEUS)
"""Components that look names up; the others need no DNS."""
KUBERNETES_PORTS = (443, 6443)
"""Of a cluster's API server, which the activator alone reaches: managed ones, and kubeadm's."""
EVERYWHERE = ("0.0.0.0/0", "::/0")
"""Every address, for a network policy: a block of one family lets nothing of the other through."""
READER_LABEL = "modelfleet.dev/read-by"
"""Of a ConfigMap that no pod of ours mounts: the program that finds it by its labels."""
DATA_LABEL = "modelfleet.dev/data"
"""Of a Namespace: `retain` or `disposable`, and `none` where the namespace has no claims. The policy pack wants every claim protected,
except in a namespace with the value `disposable`. `make up` deletes a namespace with the value `none` without asking, and no other one."""
KEYS_CHANGED_ANNOTATION = "modelfleet.dev/keys-changed"
"""On a pod of the API server: when it was told last that keys have changed."""
STACK_ANNOTATION = "modelfleet.dev/stack"
"""The stack that made the object, as organization/project/stack."""
PROTECTED_ANNOTATION = "modelfleet.dev/protected"
"""Of a claim that Pulumi refuses to delete."""
GPU_MEMORY_ANNOTATION = "modelfleet.dev/gpu-memory"
"""On the configuration of time-slicing: `not-isolated`, since nothing keeps one share from the memory of another."""
RUNTIME_ANNOTATION = "modelfleet.dev/gpu-runtime"
"""On the fleet: `node-default`, where the configuration wants no RuntimeClass. Components set it from the setting, never by themselves."""
COPIES_ANNOTATION = "modelfleet.dev/copies"
"""`disposable`: of the fleet and its StorageClass, where the configuration wants copies of models to go with a replica; and of a claim
that holds nothing but what can be made again."""
ONE_NODE_ANNOTATION = "modelfleet.dev/one-node"
"""Of the shared claim: `true`, where the configuration says that one node has every pod that uses it."""
EXPOSED_ANNOTATION = "modelfleet.dev/exposed"
"""Of a Service: the type that the configuration asks for. Components set it from the setting, never by themselves."""
POOLS_ANNOTATION = "modelfleet.dev/pools"
"""Of the API server's network policy: the pools of others that the configuration names, each as NETWORK:PORT or NAMESPACE:PORT. Components
set it from the setting, never by themselves."""
MODEL_VERSION_ANNOTATION = "modelfleet.dev/model-version"
"""Of a pod that keeps a model's file open."""
