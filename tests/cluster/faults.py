"""Faults to inject, each in a namespace of its own, and the one finding that names it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

BASE = "modelfleet/base:embedded"
SLEEP = ["sleep", "3600"]
SMALL = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}
UNREACHABLE = "unreachable.example"
"""A registry name that the nodes are told to look for where nothing listens."""
LABEL = {"explain": "fault"}


@dataclass(frozen=True)
class Fault:
    objects: list[Object]
    cause: str
    subject: str
    says: str
    """A regular expression that the sentence holds."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the namespace."""


def container(**fields: Any) -> Object:
    return {"name": "main", "image": BASE, "command": SLEEP, "resources": SMALL, **fields}


def pod_spec(*containers: Object, **fields: Any) -> Object:
    return {
        "containers": list(containers) or [container()],
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        # Node n2 is tainted and stopped by these tests.
        "nodeSelector": {"kubernetes.io/hostname": "n1"},
        **fields,
    }


def pod(*containers: Object, name: str = "p", labels: Mapping[str, str] = LABEL, **fields: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(labels)}, "spec": pod_spec(*containers, **fields)}


def deployment(*containers: Object, replicas: int = 1, name: str = "d", labels: Mapping[str, str] = LABEL, **fields: Any) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": pod_spec(*containers, **fields)},
        },
    }


def job(restart: str, code: int, words: str = "no luck", component: str = "") -> Object:
    labels = _component(component) if component else {}
    spec = pod_spec(container(command=["sh", "-c", f"echo '{words}'; exit {code}"]), restartPolicy=restart)
    template = {"metadata": {"labels": labels}, "spec": spec}
    metadata = {"name": "j", "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"backoffLimit": 0, "template": template}}


def claim(storage_class: str) -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": storage_class, "resources": {"requests": {"storage": "1Mi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": spec}


def quota(**hard: str) -> Object:
    names = {name.replace("__", "/").replace("_", "."): value for name, value in hard.items()}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": names}}


def service(name: str, selector: Mapping[str, str]) -> Object:
    spec = {"selector": dict(selector), "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def policy(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], **spec},
    }


def _component(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name}


def _from_map(kind: str, name: str, key: str) -> Object:
    return container(env=[{"name": "X", "valueFrom": {f"{kind}KeyRef": {"name": name, "key": key}}}])


def _data(kind: str) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "there"}}


WRITER_SAYS = (
    "error: models.a:1.source: got 401 from models.example.com, want leave to read; "
    "set modelfleet:sourceTokens for models.example.com, or correct the source"
)
COPIER_SAYS = "error: a:1: /models: got 5 bytes free, want 9 for a:1; enlarge storage.hot.size"
AGENT_SAYS = """
echo "2026-11-25 01:00:00,000 INFO unready: models.a:1: loading"
echo "2026-11-25 01:00:09,000 INFO unready: models.a:1: got effective context 2048, want 4096; lower its contextLength"
sleep 3600
"""
MOUNTED = container(volumeMounts=[{"name": "v", "mountPath": "/v"}])
"""The kubelet sets up only volumes that a container mounts."""
GPU = {"requests": {"nvidia.com/gpu": "1", **SMALL["requests"]}, "limits": {"nvidia.com/gpu": "1", **SMALL["limits"]}}
NEVER = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
DNS = {
    "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
    "ports": [{"port": 53, "protocol": "UDP"}],
}

CLUSTER_WIDE: list[Object] = [
    {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": f"fault-{name}"},
        "provisioner": provisioner,
        "volumeBindingMode": mode,
    }
    for name, provisioner, mode in (
        ("nobody", "nobody.example/none", "Immediate"),
        ("waits", "modelfleet.dev/local", "WaitForFirstConsumer"),
    )
] + [{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "fault-handler"}, "handler": "nohandler"}]

FAULTS: dict[str, Fault] = {
    "no-gpu": Fault([pod(container(resources=GPU))], "no-gpu", "Pod/p", r"no nvidia.com/gpu on any of 2 nodes.*fleet.gpusPerPod"),
    "quota-pods": Fault([quota(pods="0"), deployment()], "quota", "ResourceQuota/q", r"pods=1 more for Deployment/d.*governance.pods"),
    "quota-gpu": Fault(
        [{**quota(), "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}}, deployment(container(resources=GPU))],
        "quota",
        "ResourceQuota/q",
        r"requests.nvidia.com/gpu=1 more.*governance.gpuQuota",
    ),
    "requests-missing": Fault(
        [quota(requests_cpu="1"), deployment(container(resources={}))],
        "requests-missing",
        "Deployment/d",
        r"no requests.cpu for: main.*ResourceQuota/q",
    ),
    "limit-range": Fault(
        [
            {
                "apiVersion": "v1",
                "kind": "LimitRange",
                "metadata": {"name": "l"},
                "spec": {"limits": [{"type": "Container", "max": {"memory": "32Mi"}}]},
            },
            deployment(),
        ],
        "limit-range",
        "Deployment/d",
        r"maximum memory usage per Container is 32Mi, but limit is 64Mi",
    ),
    "pod-security": Fault(
        [deployment(container(securityContext={"privileged": True}))],
        "pod-security",
        "Deployment/d",
        r"privileged.*Pod Security Standard restricted",
        {"pod-security.kubernetes.io/enforce": "restricted"},
    ),
    "priority-class-missing": Fault(
        [deployment(priorityClassName="nope")], "priority-class-missing", "PriorityClass/nope", r"none, want it for Deployment/d"
    ),
    "runtime-class-missing": Fault(
        [deployment(runtimeClassName="nope")], "runtime-class-missing", "RuntimeClass/nope", r"none, want it for Deployment/d"
    ),
    "service-account-missing": Fault(
        [deployment(serviceAccountName="nope")], "service-account-missing", "ServiceAccount/nope", r"none, want it for Deployment/d"
    ),
    "storage-class-missing": Fault(
        [claim("nope"), pod(MOUNTED, volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}])],
        "storage-class-missing",
        "PersistentVolumeClaim/c",
        r"StorageClass nope, which does not exist",
    ),
    "provisioner": Fault(
        [claim("fault-nobody")], "provisioner", "PersistentVolumeClaim/c", r"no volume from provisioner nobody.example/none"
    ),
    "claim-unused": Fault([claim("fault-waits")], "claim-unused", "PersistentVolumeClaim/c", r"WaitForFirstConsumer and no pod"),
    "claim-missing": Fault(
        [pod(MOUNTED, volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "nope"}}])],
        "claim-missing",
        "Pod/p",
        r"no PersistentVolumeClaim nope",
    ),
    "node-selector": Fault([pod(nodeSelector={"disk": "fast"})], "node-selector", "Pod/p", r"no node with disk=fast.*kubectl label node"),
    "taint": Fault(
        [pod(nodeSelector={"kubernetes.io/hostname": "n2"})], "taint", "Pod/p", r"the taint explain=fault:NoSchedule.*kubectl taint"
    ),
    "no-cpu": Fault(
        [pod(container(resources={"requests": {"cpu": "500"}}))],
        "no-cpu",
        "Pod/p",
        r"Insufficient cpu.*500 free on one node \(the largest has",
    ),
    "claim-leaving": Fault(
        [
            {**claim("local-nvme"), "metadata": {"name": "c", "finalizers": ["fault.example/hold"]}},
            pod(MOUNTED, volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]),
        ],
        "claim-leaving",
        "PersistentVolumeClaim/c",
        r"a mark for deletion, which waits for pods p, want a claim that pods can use; copy what you need",
    ),
    "no-memory": Fault([pod(container(resources={"requests": {"memory": "9Ti"}}))], "no-memory", "Pod/p", r"Insufficient memory.*9Ti free"),
    "runtime-handler-missing": Fault(
        [pod(runtimeClassName="fault-handler")],
        "runtime-handler-missing",
        "RuntimeClass/fault-handler",
        r"handler nohandler, which the container runtime of node n1 does not have",
    ),
    "image-missing": Fault(
        [deployment(container(image="modelfleet/nope:1"), replicas=2)],
        "image-missing",
        "Deployment/d",
        r"no image modelfleet/nope:1 at its registry",
    ),
    "registry-unreachable": Fault(
        [pod(container(image=f"{UNREACHABLE}/x:1"))], "registry-unreachable", "Pod/p", rf"no answer from .*{UNREACHABLE}/x:1.*refused"
    ),
    "image-name": Fault([pod(container(image="modelfleet/Nope"))], "image-name", "Pod/p", r"the image name 'modelfleet/Nope'"),
    "secret-missing": Fault(
        [pod(MOUNTED, volumes=[{"name": "v", "secret": {"secretName": "nope"}}])],
        "secret-missing",
        "Secret/nope",
        r"none, want it for Pod/p",
    ),
    "secret-key-missing": Fault(
        [_data("Secret"), pod(_from_map("secret", "there", "nope"))],
        "secret-key-missing",
        "Secret/there",
        r"no key nope, want it for Pod/p",
    ),
    "configmap-missing": Fault(
        [pod(_from_map("configMap", "nope", "x"))], "configmap-missing", "ConfigMap/nope", r"none, want it for Pod/p"
    ),
    "configmap-key-missing": Fault(
        [
            _data("ConfigMap"),
            pod(MOUNTED, volumes=[{"name": "v", "configMap": {"name": "there", "items": [{"key": "nope", "path": "x"}]}}]),
        ],
        "configmap-key-missing",
        "ConfigMap/there",
        r"no key nope, want it for Pod/p",
    ),
    "command-missing": Fault([pod(container(command=["/nope"]))], "command-missing", "Pod/p", r"/nope"),
    "oom": Fault(
        [pod(container(command=["python3", "-c", "bytearray(10**9)"]))], "oom", "Pod/p", r"killed for memory at its limit of 64Mi.*raise"
    ),
    "crash": Fault(
        [deployment(container(command=["sh", "-c", "echo 'error: the disk is full'; exit 3"])), service("s", LABEL)],
        "crash",
        "Deployment/d",
        r"exit code 3: error: the disk is full, want",
    ),
    "source-refused": Fault(
        [job("Never", 1, WRITER_SAYS, "model-sync")],
        "source-refused",
        "Job/j",
        r"got 401 from models.example.com for model a:1, want leave to read; set modelfleet:sourceTokens for models.example.com",
    ),
    "liveness": Fault([pod(container(livenessProbe=NEVER))], "liveness", "Pod/p", r"killed \d+ times by its liveness probe"),
    "startup": Fault([pod(container(startupProbe=NEVER))], "startup", "Pod/p", r"killed \d+ times by its startup probe"),
    "readiness": Fault(
        [deployment(container(readinessProbe=NEVER)), service("s", LABEL)],
        "readiness",
        "Deployment/d",
        r"not ready for \d+ s \(Readiness probe failed",
    ),
    "replica-unready": Fault(
        [
            pod(
                container(name="ollama", readinessProbe=NEVER),
                labels=_component("ollama"),
                initContainers=[container(name="ollama-agent", restartPolicy="Always", command=["sh", "-c", AGENT_SAYS])],
            )
        ],
        "replica-unready",
        "Pod/p",
        r"got models.a:1 with effective context 2048, want 4096; lower its contextLength",
    ),
    "copy-failed": Fault(
        [
            pod(
                labels=_component("model-server"),
                initContainers=[
                    container(
                        name="model-sync",
                        command=["sh", "-c", f"echo '{COPIER_SAYS}'; exit 1"],
                        terminationMessagePolicy="FallbackToLogsOnError",
                    )
                ],
            )
        ],
        "copy-failed",
        "Pod/p",
        r"got a:1: /models with 5 bytes free, want 9 for a:1; enlarge storage.hot.size or modelfleet:modelServers.model-server.localSize",
    ),
    "job-lost": Fault([job("OnFailure", 5)], "job-failed", "Job/j", r"BackoffLimitExceeded"),
    "job-crash": Fault([job("Never", 5)], "crash", "Job/j", r"exit code 5: no luck"),
    "policy": Fault(
        [
            policy("default-deny"),
            policy(
                "api-server",
                podSelector={"matchLabels": _component("api-server")},
                egress=[DNS, {"to": [{"podSelector": {"matchLabels": _component("ollama")}}], "ports": [{"port": 11434}]}],
            ),
            pod(container(readinessProbe=NEVER), name="api-server", labels=_component("api-server")),
            pod(name="ollama", labels=_component("ollama")),
        ],
        "policy",
        "NetworkPolicy/default-deny",
        r"no rule for api-server to ollama:11434 \(ingress\), want",
    ),
    "scaled-to-zero": Fault(
        [deployment(replicas=0), service("s", LABEL)], "scaled-to-zero", "Deployment/d", r"0 replicas, want at least 1"
    ),
    "no-endpoints": Fault([service("s", {"app": "nobody"})], "no-endpoints", "Service/s", r"no pod with the labels app=nobody"),
    "namespace-terminating": Fault(
        [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["fault.example/hold"]}}],
        "namespace-terminating",
        "Namespace/fault-namespace-terminating",
        r"fault.example/hold",
    ),
}
