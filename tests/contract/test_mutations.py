"""Changes of our own prod rendering that nobody should merge: each is caught by a rule, whatever form it takes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.analysis.policy import dockerfiles, rules

ROOT = Path(__file__).resolve().parents[2]
PROD = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "tests" / "golden" / "prod").glob("*.yaml"))]
Objects = list[dict[str, Any]]
Change = Callable[["Stack"], object]


class Stack:
    """A rendering to change, with short ways to what is in it."""

    def __init__(self) -> None:
        self.objects: Objects = copy.deepcopy(PROD)

    def one(self, kind: str, name: str = "") -> dict[str, Any]:
        return next(item for item in self.objects if item["kind"] == kind and item["metadata"]["name"].startswith(name))

    def spec(self, kind: str, name: str = "") -> Any:
        return self.one(kind, name)["spec"]

    def pod(self, kind: str = "Deployment", name: str = "api-server") -> Any:
        return self.spec(kind, name)["template"]["spec"]

    def container(self, kind: str = "Deployment", name: str = "api-server") -> Any:
        return self.pod(kind, name)["containers"][0]

    def env(self, kind: str = "StatefulSet", name: str = "ollama") -> list[dict[str, Any]]:
        return self.container(kind, name)["env"]

    def without(self, kind: str, name: str = "") -> None:
        self.objects.remove(self.one(kind, name))

    def also(self, kind: str, name: str, **fields: Any) -> None:
        version = {"NetworkPolicy": "networking.k8s.io/v1", "ClusterRoleBinding": "rbac.authorization.k8s.io/v1"}.get(kind, "v1")
        metadata = {"name": name, "namespace": "modelfleet", "labels": {"app.kubernetes.io/part-of": "modelfleet"}}
        self.objects.append({"apiVersion": version, "kind": kind, "metadata": metadata, **fields})


def drop_env(stack: Stack, *names: str) -> None:
    stack.env()[:] = [each for each in stack.env() if each["name"] not in names]


# Those that got through once (review of 2026-11-25).
FOUND: dict[str, Change] = {
    "one container is unconfined": lambda s: s.container()["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "the store and the home of Ollama are its defaults": lambda s: drop_env(s, "OLLAMA_MODELS", "HOME"),
    "a parameter that another driver does not know": lambda s: s.one("StorageClass", "local-nvme").update(
        parameters={"server": "nfs.example.com"}
    ),
    "a node label with a value that no node has": lambda s: s.one("RuntimeClass")["scheduling"].update(
        nodeSelector={"nvidia.com/gpu.present": "present"}
    ),
    "no quota on GPUs": lambda s: s.spec("ResourceQuota", "governance-quota")["hard"].pop("requests.nvidia.com/gpu"),
    "a configuration that no container mounts": lambda s: s.container("Deployment", "cache-server").update(volumeMounts=[]),
    "metrics of the fleet behind a closed port": lambda s: s.spec("NetworkPolicy", "ollama")["ingress"].__delitem__(slice(1, None)),
    "a scrape rule for another port": lambda s: [
        port.update(port=1)
        for rule in s.spec("NetworkPolicy", "model-server")["ingress"]
        if any("namespaceSelector" in peer for peer in rule["from"])
        for port in rule["ports"]
    ],
    "a second policy that allows everything": lambda s: s.also(
        "NetworkPolicy", "open", spec={"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]}
    ),
}
MORE: dict[str, Change] = {
    "a tag": lambda s: s.container().update(image="registry.example.com/api-server:1.2.3"),
    "latest, without a word": lambda s: s.container().update(image="registry.example.com/api-server"),
    "a tag of an init container": lambda s: s.pod("StatefulSet", "ollama")["initContainers"][0].update(image="example.com/x:1"),
    "root, by the pod": lambda s: s.pod()["securityContext"].update(runAsUser=0),
    "root, by the container": lambda s: s.container()["securityContext"].update(runAsUser=0),
    "may be root": lambda s: s.pod()["securityContext"].pop("runAsNonRoot"),
    "more privileges than its parent": lambda s: s.container()["securityContext"].update(allowPrivilegeEscalation=True),
    "privileged": lambda s: s.container("DaemonSet", "metrics-exporter")["securityContext"].update(privileged=True),
    "a capability back": lambda s: s.container()["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    "a writable root": lambda s: s.container()["securityContext"].update(readOnlyRootFilesystem=False),
    "seccomp of the pod is unconfined": lambda s: s.pod()["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "seccomp of the pod is gone": lambda s: s.pod()["securityContext"].pop("seccompProfile"),
    "the proc of the host": lambda s: s.container()["securityContext"].update(procMount="Unmasked"),
    "AppArmor is off": lambda s: s.container()["securityContext"].update(appArmorProfile={"type": "Unconfined"}),
    "a token in every pod": lambda s: s.pod().pop("automountServiceAccountToken", None),
    "the network of the host": lambda s: s.pod().update(hostNetwork=True),
    "the processes of the host": lambda s: s.pod().update(hostPID=True),
    "the users of the host for a sysctl": lambda s: s.pod()["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
    "a directory of the host": lambda s: s.pod()["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "a port of the host": lambda s: s.container()["ports"][0].update(hostPort=8000),
    "no limit on memory": lambda s: s.container()["resources"]["limits"].pop("memory"),
    "no request for cores": lambda s: s.container()["resources"]["requests"].pop("cpu"),
    "no readiness": lambda s: s.container().pop("readinessProbe"),
    "no liveness": lambda s: s.container("StatefulSet", "model-server").pop("livenessProbe"),
    "a load balancer that nobody asked for": lambda s: s.spec("Service", "api-server").update(type="LoadBalancer"),
    "a node port that nobody asked for": lambda s: s.spec("Service", "cache-server").update(type="NodePort"),
    "an address of another network": lambda s: s.spec("Service", "api-server").update(externalIPs=["203.0.113.1"]),
    "no policy that denies": lambda s: s.without("NetworkPolicy", "default-deny"),
    "a policy for nobody": lambda s: s.spec("NetworkPolicy", "ollama")["podSelector"]["matchLabels"].update(
        {"app.kubernetes.io/name": "olama"}
    ),
    "no DNS for the gateway": lambda s: s.spec("NetworkPolicy", "api-server")["egress"].pop(),
    "the whole internet for the cache": lambda s: s.spec("NetworkPolicy", "cache-server").update(
        egress=[{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]
    ),
    "all of IPv6 for the cache": lambda s: s.spec("NetworkPolicy", "cache-server").update(
        egress=[{"to": [{"ipBlock": {"cidr": "::/0"}}], "ports": [{"port": 443}]}]
    ),
    "every namespace at the cache": lambda s: s.spec("NetworkPolicy", "cache-server")["ingress"][0].update(
        {"from": [{"namespaceSelector": {}}]}
    ),
    "every pod of the namespace at the fleet": lambda s: s.spec("NetworkPolicy", "ollama")["ingress"][0].update(
        {"from": [{"podSelector": {}}]}
    ),
    "any port of the fleet": lambda s: s.spec("NetworkPolicy", "ollama")["ingress"][0].pop("ports"),
    "a key in the environment": lambda s: s.env("Deployment", "api-server").append({"name": "API_KEY", "value": "of-somebody"}),
    "a key in an argument": lambda s: s.container().update(args=["--key=sk-abcdefghijklmnopqrstuvwx"]),
    "a password in a configuration": lambda s: s.one("ConfigMap", "cache-config")["data"].update({"users.conf": "requirepass hunter2"}),
    "a password in an address": lambda s: s.env().append({"name": "MIRROR", "value": "https://me:hunter2@example.com"}),
    "models that go with the stack": lambda s: s.one("StorageClass", "shared-models").update(reclaimPolicy="Delete"),
    "replicas' models that go with the stack": lambda s: s.spec("StatefulSet", "ollama").update(
        persistentVolumeClaimRetentionPolicy={"whenDeleted": "Delete", "whenScaled": "Retain"}
    ),
    "a shared claim that may be deleted": lambda s: s.one("PersistentVolumeClaim")["metadata"]["annotations"].clear(),
    "a class that provisions nothing": lambda s: s.one("StorageClass", "local-nvme").update(provisioner="kubernetes.io/no-provisioner"),
    "a class that nobody has": lambda s: [
        s.spec("StatefulSet", name)["volumeClaimTemplates"][0]["spec"].update(storageClassName="fast")
        for name in ("ollama", "model-server")
    ],
    "one writer at a time for the shared claim": lambda s: s.spec("PersistentVolumeClaim").update(accessModes=["ReadWriteOnce"]),
    "a volume before its node is known": lambda s: s.one("StorageClass", "local-nvme").update(volumeBindingMode="Immediate"),
    "a GPU without its runtime": lambda s: s.pod("StatefulSet", "ollama").pop("runtimeClassName"),
    "a runtime class that nobody made": lambda s: s.pod("StatefulSet", "ollama").update(runtimeClassName="nvidea"),
    "a priority that nobody made": lambda s: s.pod().update(priorityClassName="system-cluster-critical"),
    "a gateway that the fleet evicts": lambda s: s.one("PriorityClass", "gateway-priority").update(value=1),
    "batch work that evicts": lambda s: s.one("PriorityClass", "gpu-batch-priority").pop("preemptionPolicy"),
    "a limit as a quota": lambda s: s.spec("ResourceQuota", "governance-quota")["hard"].update({"limits.nvidia.com/gpu": "8"}),
    "no defaults under the quota": lambda s: s.without("LimitRange"),
    "a GPU for every container": lambda s: s.spec("LimitRange")["limits"][0]["defaultRequest"].update({"nvidia.com/gpu": "1"}),
    "two pods away at a time": lambda s: s.spec("PodDisruptionBudget", "ollama").update(maxUnavailable=2),
    "no budget for the gateway": lambda s: s.without("PodDisruptionBudget", "api-server"),
    "a budget for nobody": lambda s: s.spec("PodDisruptionBudget", "ollama")["selector"]["matchLabels"].update(
        {"app.kubernetes.io/name": "x"}
    ),
    "a Service for nobody": lambda s: s.spec("Service", "api-server").update(selector={"app.kubernetes.io/name": "x"}),
    "a Service for another port": lambda s: s.spec("Service", "api-server")["ports"][0].update(targetPort=8001),
    "labels that the selector does not have": lambda s: s.spec("Deployment", "api-server")["template"]["metadata"]["labels"].update(
        {"app.kubernetes.io/name": "x"}
    ),
    "a mount without a volume": lambda s: s.container()["volumeMounts"].append({"name": "x", "mountPath": "/x"}),
    "a store in root's home": lambda s: s.container("StatefulSet", "ollama")["volumeMounts"][0].update(mountPath="/root/.ollama"),
    "a gateway in the default namespace": lambda s: s.one("Deployment", "api-server")["metadata"].pop("namespace"),
    "a namespace that lets anything in": lambda s: s.one("Namespace")["metadata"]["labels"].update(
        {"pod-security.kubernetes.io/enforce": "privileged"}
    ),
    "a pod with rights": lambda s: s.also(
        "ClusterRoleBinding", "all", roleRef={"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"}
    ),
    "a Secret in the rendering": lambda s: s.one("Secret", "api-server-keys").update(stringData={"keys": "of-somebody"}),
    "an unsigned image source in a pull policy": lambda s: s.container().update(imagePullPolicy="Never"),
}


def test_the_rendering_itself_breaks_no_rule() -> None:
    assert rules.violations(PROD, rules.RENDERING_RULES) == []


@pytest.mark.parametrize("name", [*FOUND, *MORE])
def test_a_harmful_change_is_caught(name: str) -> None:
    stack = Stack()
    (FOUND | MORE)[name](stack)
    assert json.dumps(stack.objects) != json.dumps(PROD), "nothing was changed"
    assert rules.violations(stack.objects, rules.RENDERING_RULES) != []


def test_every_rule_catches_something() -> None:
    tried = "".join((ROOT / "tests" / path).read_text() for path in ("contract/test_defects.py", "unit/test_rules.py"))
    unseen = {rule for rule in rules.RENDERING_RULES if f"rules.{rule.__name__}" not in tried}
    for change in (FOUND | MORE).values():
        stack = Stack()
        change(stack)
        unseen = {rule for rule in unseen if not rule(stack.objects)}
    assert unseen == set()


DOCKERFILE = """FROM {base} AS builder
RUN --mount=type=cache,target=/root/.cache pip install --require-hashes -r requirements.lock
FROM {base}
{line}
USER 10001:10001
ENTRYPOINT ["/app/start"]
"""
LINES = {
    "another compiler": "RUN apt-get install -y clang",
    "the tools around compilers": "RUN apt-get install -y cmake",
    "a compiler's parts": "RUN apt-get install -y llvm-16",
    "Rust": "RUN apt-get install -y rustc cargo",
    "Go": "RUN apt-get install -y golang-go",
    "a second install in one line": "RUN pip install --require-hashes -r requirements.lock && pip install torch",
    "options before install": "RUN pip --no-cache-dir install torch",
    "pip as a module": "RUN python -m pip install torch",
    "uv": "RUN uv pip install torch",
    "a script from the network": "RUN curl -fsSL https://example.com/install.sh | sh",
    "a download without a digest": "ADD https://example.com/tool.tar.gz /opt/",
    "Python where there is none": 'ENTRYPOINT ["/usr/bin/python3", "-m", "app"]',
    "a health check": "HEALTHCHECK CMD curl localhost",
    "root again": "USER root",
    "a secret as an argument": "ARG HF_TOKEN",
    "a secret in the environment": "ENV API_KEY=of-somebody",
}


@pytest.mark.parametrize("name", LINES)
def test_a_harmful_line_of_a_dockerfile_is_caught(name: str) -> None:
    digest = f"sha256:{'0' * 64}"
    pins, base = {"debian": {"tag": "12-slim", "digest": digest}}, f"debian:12-slim@{digest}"
    text = DOCKERFILE.format(base=base, line="RUN true")
    assert dockerfiles.violations(text, pins) == []
    line = LINES[name]
    changed = DOCKERFILE.format(base=base, line=line)
    if line.startswith(("ENTRYPOINT", "USER")):
        replaced = line.split()[0]
        changed = "\n".join(line if each.startswith(replaced) else each for each in text.splitlines())
    assert dockerfiles.violations(changed, pins) != []


@pytest.mark.parametrize("base", ["debian:12-slim", "debian:12", f"debian:12-slim@sha256:{'1' * 64}"])
def test_a_base_that_is_not_the_pinned_one_is_caught(base: str) -> None:
    pins = {"debian": {"tag": "12-slim", "digest": f"sha256:{'0' * 64}"}}
    assert any(base in line for line in dockerfiles.violations(DOCKERFILE.format(base=base, line="RUN true"), pins))


CHAINED = 'ARG BASE\nFROM ${BASE}\nRUN apt-get install -y g++\nUSER 10001:10001\nLABEL dev.modelfleet.compiles="kernels, when it starts"\n'


def test_an_image_may_stand_on_what_its_build_gives_it_and_say_what_it_compiles() -> None:
    assert dockerfiles.violations(CHAINED, {}) == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("ARG BASE\n", "ARG BASE=ubuntu:latest\n", "FROM ${BASE}: got an unpinned base"),
        ("ARG BASE\n", "", "FROM ${BASE}: got an unpinned base"),
        ("BASE", "OTHER", "FROM ${OTHER}: got an unpinned base"),
        ("kernels, when it starts", "", "g++: got it in the final stage"),
        ("LABEL", "ENV", "g++: got it in the final stage"),
        ("LABEL", "#", "g++: got it in the final stage"),
    ],
)
def test_a_base_that_could_be_any_and_a_compiler_without_a_reason_are_caught(old: str, new: str, line: str) -> None:
    found = dockerfiles.violations(CHAINED.replace(old, new), {})
    assert [each for each in found if each.startswith(line)], found
