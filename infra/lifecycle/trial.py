"""Jobs that try a cluster: a namespace of their own, which goes again with all that is in it."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import kubernetes.client
import kubernetes.dynamic

from components.contract import ARCHITECTURE

JOB_S = 120
"""For an image to be pulled, and a pod to start and end."""
LABEL = "modelfleet.dev/cluster-check"
_CLAIM_IS_WELL = ("WaitForFirstConsumer", "WaitForPodScheduled", "ProvisioningSucceeded")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What the pods of Jobs need."""

    image: str
    """With Python."""
    user_id: int | None
    """User of the pods, and group of the volumes' files; None where the platform assigns them."""
    platform: str | None = None
    """Of the image, such as linux/arm64; None: any."""
    registry_auth: str | None = None
    """dockerconfigjson for the image."""


class Cluster:
    """Objects of any kind, as plain maps."""

    def __init__(self, client: Any) -> None:
        self._client: Any = kubernetes.dynamic.DynamicClient(client)
        self._core = kubernetes.client.CoreV1Api(client)

    def log(self, namespace: str, pod: str) -> str:
        return str(self._core.read_namespaced_pod_log(pod, namespace))

    def create(
        self, version: str, kind: str, name: str, namespace: str | None, labels: Mapping[str, str] | None = None, **body: Any
    ) -> None:
        """Make an object that bears our label."""
        whole = {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": {LABEL: name, **(labels or {})}}, **body}
        self._of(version, kind).create(body=whole, namespace=namespace)

    def items(self, version: str, kind: str, **where: str) -> list[dict[str, Any]]:
        return list(self._of(version, kind).get(**where).to_dict()["items"])

    def remove(self) -> None:
        """All that bears our label. Namespaces go first, and claims with them; then classes, which the end of a volume may need."""
        ours = {"label_selector": LABEL}
        for namespace in self.items("v1", "Namespace", **ours):
            self._of("v1", "Namespace").delete(name=namespace["metadata"]["name"])
        until(lambda: not self.items("v1", "Namespace", **ours), JOB_S)
        made = [each["metadata"]["name"] for each in self.items("storage.k8s.io/v1", "StorageClass", **ours)]
        volumes = lambda: [each["spec"].get("storageClassName") for each in self.items("v1", "PersistentVolume")]  # noqa: E731
        until(lambda: not set(made) & set(volumes()), JOB_S)
        for name in made:
            self._of("storage.k8s.io/v1", "StorageClass").delete(name=name)

    def _of(self, version: str, kind: str) -> Any:
        return self._client.resources.get(api_version=version, kind=kind)


def until(done: Callable[[], bool], limit_s: float) -> None:
    """Return once it is done, or after the limit."""
    deadline = time.monotonic() + limit_s
    while not done() and time.monotonic() < deadline:
        time.sleep(1)


class Trial:
    """A namespace, and Jobs in it."""

    def __init__(self, cluster: Cluster, runs: Runs, *, reads_nodes: bool = False) -> None:
        self._cluster, self._runs, self._namespace = cluster, runs, f"modelfleet-check-{secrets.token_hex(3)}"
        # Files of a node are read by pods of this namespace alone, and it is there for a minute.
        labels = {"pod-security.kubernetes.io/enforce": "privileged"} if reads_nodes else {}
        cluster.create("v1", "Namespace", self._namespace, None, labels=labels)
        if runs.registry_auth is not None:
            content = {".dockerconfigjson": runs.registry_auth}
            self.create("v1", "Secret", "pull", type="kubernetes.io/dockerconfigjson", stringData=content)

    def create(self, version: str, kind: str, name: str, **body: Any) -> None:
        self._cluster.create(version, kind, name, self._namespace, **body)

    def start(self, name: str, command: list[str], claim: str | None = None, node: str | None = None, host: str | None = None) -> None:
        """Run Python. `node`: where; `host`: the path at which it reads the files of that node, as root without any capability."""
        runs = self._runs
        volumes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        if claim:
            volumes["claim"] = {"persistentVolumeClaim": {"claimName": claim}}, {"mountPath": "/claim"}
        if host:
            volumes["node"] = {"hostPath": {"path": "/"}}, {"mountPath": host, "readOnly": True, "mountPropagation": "HostToContainer"}
        container = {
            "name": "check",
            "image": runs.image,
            "command": ["python3", "-c", *command],
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
            "volumeMounts": [{"name": name, **mount} for name, (_, mount) in volumes.items()],
        }
        user = {} if runs.user_id is None else {"runAsUser": runs.user_id, "fsGroup": runs.user_id}
        who = {"runAsUser": 0} if host else {"runAsNonRoot": True, **user}
        pod = {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "nodeSelector": {ARCHITECTURE: runs.platform.partition("/")[2]} if runs.platform else {},
            **({"nodeName": node, "tolerations": [{"operator": "Exists"}]} if node else {}),
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, **who},
            "imagePullSecrets": [{"name": "pull"}] if runs.registry_auth is not None else [],
            "containers": [container],
            "volumes": [{"name": name, **volume} for name, (volume, _) in volumes.items()],
        }
        template = {"metadata": {"labels": {LABEL: name}}, "spec": pod}
        self.create("batch/v1", "Job", name, spec={"backoffLimit": 0, "template": template})

    def said(self, name: str) -> str | None:
        """What the pod of a Job has printed. None where the pod is gone: somebody removed it, or its node."""
        pods = self._cluster.items("v1", "Pod", namespace=self._namespace, label_selector=f"{LABEL}={name}")
        return self._cluster.log(self._namespace, pods[0]["metadata"]["name"]) if pods else None

    def ends_well(self, name: str, limit_s: float) -> bool:
        def status() -> dict[str, Any]:
            [job] = self._cluster.items("batch/v1", "Job", namespace=self._namespace, field_selector=f"metadata.name={name}")
            return dict(job.get("status") or {})

        until(lambda: bool(status().get("succeeded") or status().get("failed")), limit_s)
        return bool(status().get("succeeded"))

    def why(self, name: str) -> str:
        """What the cluster says about the Job of that name, its pod and its claim."""
        events = self._cluster.items("v1", "Event", namespace=self._namespace)
        return cause([each for each in events if each["involvedObject"]["name"].partition("-")[0] == name])


def cause(events: Sequence[Mapping[str, Any]]) -> str:
    """What kept a pod from running: what was said about its claim, unless that one waits for the pod or is there; the last warning, or else
    the last event. A claim without a volume is never more than an ordinary event, and the pod's warning of it names no reason."""

    def weight(event: Mapping[str, Any]) -> tuple[bool, bool, str]:
        of_claim = event["involvedObject"]["kind"] == "PersistentVolumeClaim" and event["reason"] not in _CLAIM_IS_WELL
        return of_claim, event.get("type") == "Warning", event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]

    last = max(events, key=weight, default=None)
    return f"{last['reason']} ({last['message']})" if last else "nothing"
