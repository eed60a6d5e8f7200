"""A snapshot with the look-ups that the rules need, and the form of a finding."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from components.contract import (
    API_SERVER,
    CACHE_SERVER,
    CONTEXT_PROBE,
    METRICS_EXPORTER,
    MODEL_SERVER,
    MODEL_WRITER,
    OLLAMA,
    PROMETHEUS,
    kind_of,
)
from infra.analysis.explain.snapshot import Object, Snapshot

_SECTIONS = {
    OLLAMA: "fleet",
    CACHE_SERVER: "cache",
    API_SERVER: "apiServer",
    METRICS_EXPORTER: "monitoring",
    PROMETHEUS: "monitoring.prometheus",
}
_CONTAINER_IMAGES = {MODEL_WRITER: "model-sync", "ollama-agent": "ollama-agent", CONTEXT_PROBE: "ollama-agent"}
"""Containers with another image than that of their pod's component."""
_RECENT_S = 600


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One cause, in one sentence of the form `<subject>: got X, want Y; do Z`."""

    cause: str
    """Short fixed name of the cause. At most one finding is shown for each subject and cause."""
    subject: str
    """`Kind/name` of the object that has to change or has a problem."""
    got: str
    want: str
    do: str
    about: frozenset[str]
    """Keys (`Kind/name`, `soft:<component>`) of the objects of this finding. It is left out when an earlier finding covers one of them."""
    covers: frozenset[str] = frozenset()
    """Further keys. Problems of these objects follow from this finding."""

    def __str__(self) -> str:
        return f"{self.subject}: got {self.got}, want {self.want}; {self.do}"


def key(item: Object, kind: str) -> str:
    return f"{kind}/{item['metadata']['name']}"


def labels(item: Object) -> dict[str, str]:
    return item["metadata"].get("labels") or {}


def selects(selector: dict[str, Any], found: dict[str, str]) -> bool:
    """Whether a LabelSelector matches these labels; an empty one matches all."""
    if not (selector.get("matchLabels") or {}).items() <= found.items():
        return False
    for rule in selector.get("matchExpressions") or []:
        value, operator = found.get(rule["key"]), rule["operator"]
        values = rule.get("values") or []
        holds = {"In": value in values, "NotIn": value not in values, "Exists": value is not None, "DoesNotExist": value is None}
        if not holds[operator]:
            return False
    return True


def one_line(text: str, limit: int = 300) -> str:
    """`text` as a part of a sentence: without line breaks and full stop, and cut where it is long."""
    flat = re.sub(r"\s+", " ", text).strip().rstrip(".;: ")
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


@dataclass(frozen=True)
class Container:
    """One container's status within its pod."""

    pod: Object
    status: Object
    spec: Object

    @property
    def name(self) -> str:
        return str(self.status["name"])

    @property
    def waiting(self) -> Object:
        return self.status.get("state", {}).get("waiting") or {}

    @property
    def ended(self) -> Object:
        """State of its last end; empty if it never ended."""
        return self.status.get("state", {}).get("terminated") or self.status.get("lastState", {}).get("terminated") or {}

    @property
    def restarts(self) -> int:
        return int(self.status.get("restartCount", 0))

    @property
    def ready(self) -> bool:
        return bool(self.status.get("ready"))


class Facts:
    """A snapshot with look-ups."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.now = datetime.fromisoformat(snapshot.taken)
        self._named = {(kind, item["metadata"]["name"]): item for kind, items in snapshot.objects.items() for item in items}
        self._events: dict[tuple[Any, ...], list[Object]] = {}
        """By kind, name and uid of the object, the oldest first."""
        for event in sorted(snapshot.objects.get("Event", []), key=_event_time):
            about = event["involvedObject"]
            self._events.setdefault((about.get("kind"), about.get("name"), about.get("uid")), []).append(event)

    def all(self, kind: str) -> list[Object]:
        return self.snapshot.objects.get(kind, [])

    def find(self, kind: str, name: str) -> Object | None:
        return self._named.get((kind, name))

    def age_s(self, stamp: str | None) -> float:
        """Seconds since an RFC 3339 time; 0 without one."""
        return (self.now - datetime.fromisoformat(stamp.replace("Z", "+00:00"))).total_seconds() if stamp else 0.0

    def events(self, kind: str, item: Object, reason: str | None = None) -> list[str]:
        """Messages about one object, latest first."""
        found = self._events.get((kind, item["metadata"]["name"], item["metadata"]["uid"]), [])
        return [event.get("message", "") for event in reversed(found) if reason in (None, event.get("reason"))]

    def live_pods(self) -> Iterator[Object]:
        """Pods that should run: neither finished nor being deleted."""
        for pod in self.all("Pod"):
            if pod["status"].get("phase") != "Succeeded" and not pod["metadata"].get("deletionTimestamp"):
                yield pod

    def containers(self) -> Iterator[Container]:
        """Containers with a problem: not ready, or restarted several times recently."""
        for pod in self.live_pods():
            status = pod["status"]
            specs = {each["name"]: each for each in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]}
            for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
                container = Container(pod, each, specs[each["name"]])
                done = each.get("state", {}).get("terminated", {}).get("exitCode") == 0
                recent = bool(container.ended) and self.age_s(container.ended.get("finishedAt")) < _RECENT_S
                if (not container.ready and not done) or (container.restarts >= 2 and recent):
                    yield container

    def log(self, container: Container) -> str:
        return self.log_of(container.pod, container.name)

    def log_of(self, pod: Object, container: str) -> str:
        """Last log lines of a container that has a problem, or that logs the reason for the problem of another container."""
        return self.snapshot.logs.get(f"{pod['metadata']['name']}/{container}", "")

    def log_line(self, container: Container) -> str:
        """The last line of a container's log that gives a reason; empty without one."""
        lines = [line.strip() for line in self.log(container).splitlines() if line.strip()]
        return next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "")

    def last_words(self, container: Container) -> str:
        """What a container that ended has left for the kubelet, whose last line says why; or else what its log says."""
        lines = [line.strip() for line in str(container.ended.get("message", "")).splitlines() if line.strip()]
        return lines[-1] if lines else self.log_line(container)

    def workload(self, pod: Object) -> str:
        """`Kind/name` of the workload that made the pod: the Deployment, not its ReplicaSet. A pod without a workload is its own."""
        owner = _controller(pod)
        if owner is None:
            return key(pod, "Pod")
        if owner["kind"] == "ReplicaSet":
            replica_set = self.find("ReplicaSet", owner["name"])
            parent = _controller(replica_set) if replica_set else None
            owner = parent or owner
        return f"{owner['kind']}/{owner['name']}"

    def component(self, pod: Object) -> str:
        return labels(pod).get("app.kubernetes.io/name", "")

    @property
    def servers(self) -> list[str]:
        """Components of the model servers; of one whose StatefulSet is gone, the policy is there."""
        selected = (policy["spec"].get("podSelector", {}).get("matchLabels") or {} for policy in self.all("NetworkPolicy"))
        named = [self.component(item) for kind in ("StatefulSet", "Pod") for item in self.all(kind)]
        found = {name for name in [*named, *(each.get("app.kubernetes.io/name", "") for each in selected)] if kind_of(name) == MODEL_SERVER}
        return sorted(found) or [MODEL_SERVER]

    def setting(self, item: Object, field: str) -> str:
        """The setting behind a field of a component's pod, or the field itself for anything else."""
        section = _section(self.component(item))
        return f"modelfleet:{section}.{field}" if section else f"spec.containers[].{field}"

    def image_setting(self, container: Container) -> str:
        component = self.component(container.pod)
        if component == MODEL_WRITER and container.spec.get("args", [""])[0] == "publish":
            return "modelfleet:images.refs.models"
        if component in {*_SECTIONS, MODEL_WRITER, CONTEXT_PROBE} and container.name in _CONTAINER_IMAGES:
            return f"modelfleet:images.refs.{_CONTAINER_IMAGES[container.name]}"
        if kind_of(component) == MODEL_SERVER and {"name": "MODEL_SERVER_ENGINE", "value": "vllm"} in container.spec.get("env", []):
            return "modelfleet:images.refs.model-server-vllm"
        return f"modelfleet:images.refs.{kind_of(component)}" if _section(component) else "the image's name in the pod"


def _section(component: str) -> str | None:
    """The section of the settings that a component's pods are made of. An item of a list goes by its name."""
    if kind_of(component) == MODEL_SERVER:
        return f"modelServers.{component.removeprefix(f'{MODEL_SERVER}-')}"
    return _SECTIONS.get(component)


def _controller(item: Object) -> Object | None:
    return next((owner for owner in item["metadata"].get("ownerReferences", []) if owner.get("controller")), None)


def _event_time(event: Object) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")
