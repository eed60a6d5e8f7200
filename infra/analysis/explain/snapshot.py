"""What `explain` looks at: one reading of a namespace and of what its pods need from the cluster, as plain data."""

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import kubernetes
import urllib3
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from kubernetes.stream import portforward

from components.contract import API_METRICS_PORT, API_SERVER, OLLAMA, PORTS
from components.ollama_agent import AGENT
from infra.program.cluster import connect

Object = dict[str, Any]

_NAMESPACED = {
    "Pod": "/api/v1/namespaces/{}/pods",
    "Event": "/api/v1/namespaces/{}/events",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "ResourceQuota": "/api/v1/namespaces/{}/resourcequotas",
    "Service": "/api/v1/namespaces/{}/services",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "ReplicaSet": "/apis/apps/v1/namespaces/{}/replicasets",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
    "DaemonSet": "/apis/apps/v1/namespaces/{}/daemonsets",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
}
_CLUSTER_WIDE = {
    "Node": "/api/v1/nodes",
    "StorageClass": "/apis/storage.k8s.io/v1/storageclasses",
    "RuntimeClass": "/apis/node.k8s.io/v1/runtimeclasses",
    "PriorityClass": "/apis/scheduling.k8s.io/v1/priorityclasses",
}
_NAMES_ONLY = {"Secret", "ConfigMap"}
"""Kinds that are read as metadata alone: their contents never leave the cluster."""
_TIMEOUT_S = 10
_LOG_LINES = 20
_MOST_BYTES = 16 * 2**20
"""Of one answer: metrics of thousands of servers and keys take a tenth."""
_NOT_THROUGH = (OSError, http.client.HTTPException, ApiException)
_NODES_AT_ONCE = 16
"""Whose logs are asked for: one that is lost takes the whole time limit."""


class SnapshotError(Exception):
    """The cluster could not be read; the message has the form `<path>: got X, want Y; do Z`."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One reading. Objects are as the API sends them, without managed fields and a node's description of itself."""

    namespace: str
    taken: str
    """RFC 3339, UTC."""
    objects: Mapping[str, list[Object]]
    """Kind to objects; the key `Namespace` holds the namespace itself, or nothing."""
    logs: Mapping[str, str] = field(default_factory=dict)
    """`pod/container` to the last lines of a container in trouble."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Cluster-wide kind to the reason why it could not be read."""
    answer: int | None = None
    """HTTP status of the API server for the key that was tried; 0 when no answer came, None when nothing was tried."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Ready pod of the API server to its metrics, read when a key was tried."""


def collect(context: str, kubeconfig: str | None, namespace: str, key: str | None) -> Snapshot:
    """Read `namespace` behind `context`; with `key`, also ask a ready API server pod for its models, and each for its metrics.

    Raises SnapshotError.
    """
    try:
        return _collect(connect(context, kubeconfig), namespace, key)
    except ApiException as error:
        got = f"{error.status} {error.reason}"
        raise SnapshotError(f"namespace {namespace}: got {got}, want leave to read it; ask for the role view") from None
    except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
        reason = type(error).__name__
        raise SnapshotError(f"context {context}: got no answer ({reason}), want the cluster's API; start it or check the VPN") from None


def _collect(client: ApiClient, namespace: str, key: str | None) -> Snapshot:
    unreadable: dict[str, str] = {}
    objects: dict[str, list[Object]] = {}
    try:
        objects["Namespace"] = [_get(client, f"/api/v1/namespaces/{namespace}")]
    except ApiException as error:
        if error.status != 404:
            raise
        objects["Namespace"] = []
    for kind, path in _NAMESPACED.items():
        objects[kind] = _list(client, path.format(namespace), names_only=kind in _NAMES_ONLY)
    for kind, path in _CLUSTER_WIDE.items():
        try:
            objects[kind] = _list(client, path)
        except ApiException as error:
            unreadable[kind] = f"{error.status} {error.reason}"
    gateways = _ready(objects["Pod"]) if key is not None else []
    return Snapshot(
        namespace=namespace,
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        objects=objects,
        logs=_logs(client, namespace, objects),
        unreadable=unreadable,
        answer=_ask(client, namespace, gateways, key) if key is not None else None,
        metrics=_metrics(client, namespace, gateways),
    )


def _get(client: ApiClient, path: str, query: Mapping[str, str | int] | None = None, accept: str = "application/json") -> Any:
    request = client.param_serialize(
        "GET", path, query_params=list((query or {}).items()), header_params={"Accept": accept}, auth_settings=["BearerToken"]
    )
    response = client.call_api(*request, _request_timeout=_TIMEOUT_S)
    body: bytes = response.read()
    if response.status != 200:
        raise ApiException(status=response.status, reason=response.reason)
    return json.loads(body) if accept.startswith("application/json") else body.decode(errors="replace")


def _list(client: ApiClient, path: str, *, names_only: bool = False) -> list[Object]:
    accept = "application/json" + (";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1" if names_only else "")
    items: list[Object] = _get(client, path, accept=accept)["items"] or []
    for item in items:
        item["metadata"].pop("managedFields", None)
        item["metadata"].get("annotations", {}).pop("kubectl.kubernetes.io/last-applied-configuration", None)
        for own in ("images", "nodeInfo"):
            item.get("status", {}).pop(own, None)
    return items


def _troubled(objects: Mapping[str, list[Object]]) -> Iterator[tuple[str, str, bool]]:
    """(pod, container, whether to read the log of its previous life) of containers that failed or are not ready, and of agents."""
    for pod in objects["Pod"]:
        status = pod.get("status", {})
        for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
            ended = each.get("state", {}).get("terminated", {})
            previous = each.get("lastState", {}).get("terminated", {})
            if ended.get("exitCode") or (not ended and not each.get("ready") and (previous or "running" in each.get("state", {}))):
                yield pod["metadata"]["name"], each["name"], bool(previous) and not ended
            if each["name"] == OLLAMA and "running" in each.get("state", {}):
                # Its readiness is the word of the agent beside it, who also knows which of its models cannot answer.
                yield pod["metadata"]["name"], AGENT, False


def _logs(client: ApiClient, namespace: str, objects: Mapping[str, list[Object]]) -> dict[str, str]:
    """By `pod/container`. A node that does not answer has none, and is asked once: the API server reads logs from the nodes."""
    node = {pod["metadata"]["name"]: pod["spec"].get("nodeName") for pod in objects["Pod"]}
    wanted: dict[str | None, list[tuple[str, str, bool]]] = {}
    for each in _troubled(objects):
        wanted.setdefault(node[each[0]], []).append(each)

    def of_a_node(troubled: list[tuple[str, str, bool]]) -> dict[str, str]:
        found: dict[str, str] = {}
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            for pod, container, previous in troubled:
                found[f"{pod}/{container}"] = _log(client, namespace, pod, container, previous=previous)
        return found

    with ThreadPoolExecutor(_NODES_AT_ONCE) as pool:
        return {name: text for found in pool.map(of_a_node, wanted.values()) for name, text in found.items()}


def _log(client: ApiClient, namespace: str, pod: str, container: str, *, previous: bool) -> str:
    query: dict[str, str | int] = {"container": container, "tailLines": _LOG_LINES, "previous": str(previous).lower()}
    try:
        return str(_get(client, f"/api/v1/namespaces/{namespace}/pods/{pod}/log", query, accept="*/*"))
    except ApiException:
        return ""


def _ready(pods: list[Object]) -> list[str]:
    """Names of the API server's pods that are ready."""
    return [
        pod["metadata"]["name"]
        for pod in pods
        if pod["metadata"].get("labels", {}).get("app.kubernetes.io/name") == API_SERVER
        and any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))
    ]


def _ask(client: ApiClient, namespace: str, ready: list[str], key: str) -> int | None:
    """Status of GET /v1/models on one ready pod."""
    if not ready:
        return None
    try:
        return _through(client, namespace, ready[0], PORTS[API_SERVER], "/v1/models", {"Authorization": f"Bearer {key}"})[0]
    except _NOT_THROUGH:
        return 0


def _metrics(client: ApiClient, namespace: str, ready: list[str]) -> dict[str, str]:
    """Of each ready pod, what it says of itself; nothing of one that does not."""
    found: dict[str, str] = {}
    for pod in ready:
        with contextlib.suppress(*_NOT_THROUGH):
            status, body = _through(client, namespace, pod, API_METRICS_PORT, "/metrics", {})
            if status == 200:
                found[pod] = body.decode(errors="replace")
    return found


def _through(client: ApiClient, namespace: str, pod: str, port: int, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body of a GET, through the cluster's own API: works wherever kubectl does. Raises one of _NOT_THROUGH."""
    api = kubernetes.client.CoreV1Api(client)
    forward = portforward(api.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port))
    connection = http.client.HTTPConnection("127.0.0.1", timeout=_TIMEOUT_S)
    connection.sock = forward.socket(port)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read(_MOST_BYTES)
    finally:
        connection.close()
        forward.close()
