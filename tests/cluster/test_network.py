"""Default deny holds, and the allowed edges are open: tried with real connections between real pods."""

import json

import httpx
import pytest

from tests.cluster.conftest import MODEL, Stack
from tests.cluster.kube import eventually

pytestmark = pytest.mark.cluster
TRY = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"


def probe(stack: Stack, name: str, namespace: str, component: str | None) -> None:
    """A pod that can try connections. It is never ready, so no Service sends it anything."""
    labels = {"probe": name} | ({"app.kubernetes.io/name": component} if component else {})
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "runAsUser": 10001}
    container = {
        "name": "probe",
        "image": "modelfleet/base:embedded",
        "command": ["sleep", "3600"],
        "securityContext": {**security, "seccompProfile": {"type": "RuntimeDefault"}},
        "readinessProbe": {"exec": {"command": ["false"]}},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False},
    }
    stack.kube.run("apply", "-f", "-", stdin=json.dumps(pod))
    eventually(
        lambda: stack.kube.get("pod", name, "-n", namespace)["status"]["phase"], lambda phase: phase == "Running", 60, f"pod {name} running"
    )


def connects(stack: Stack, pod: str, namespace: str, address: str, port: int) -> bool:
    return stack.kube.exec(namespace, pod, "python3", "-c", TRY, address, str(port)).returncode == 0


def address(stack: Stack, component: str) -> str:
    pods = stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", f"app.kubernetes.io/name={component}")["items"]
    return next(pod["status"]["podIP"] for pod in pods if not pod["metadata"]["name"].startswith("probe"))


@pytest.fixture(scope="module")
def probes(stack: Stack) -> dict[str, str]:
    """Probe name to namespace."""
    namespace = stack.outputs.namespace
    wanted = {
        "probe-api": (namespace, "api-server"),
        "probe-model": (namespace, "model-server"),
        "probe-stranger": (namespace, None),
        "probe-outsider": ("default", None),
        "probe-prometheus": ("monitoring", None),
    }
    stack.kube.run("create", "namespace", "monitoring")
    for name, (where, component) in wanted.items():
        probe(stack, name, where, component)
    yield {name: where for name, (where, _) in wanted.items()}  # type: ignore[misc]
    for name, (where, _) in wanted.items():
        stack.kube.run("delete", "pod", name, "-n", where, "--wait=false")
    stack.kube.run("delete", "namespace", "monitoring", "--wait=false")


@pytest.mark.parametrize(
    ("source", "target", "port", "allowed"),
    [
        ("probe-api", "ollama", 11434, True),
        ("probe-api", "model-server", 8080, True),
        ("probe-api", "cache-server", 6379, False),
        ("probe-model", "cache-server", 6379, True),
        ("probe-model", "ollama", 11434, False),
        ("probe-stranger", "cache-server", 6379, False),
        ("probe-stranger", "ollama", 11434, False),
        ("probe-outsider", "cache-server", 6379, False),
        ("probe-outsider", "ollama", 11434, False),
        ("probe-outsider", "metrics-exporter", 9400, False),
        ("probe-prometheus", "metrics-exporter", 9400, True),
        ("probe-prometheus", "model-server", 8080, True),
        ("probe-prometheus", "api-server", 9464, True),
        ("probe-prometheus", "cache-server", 6379, False),
    ],
)
def test_only_the_edges_of_the_contract_are_open(
    stack: Stack, probes: dict[str, str], source: str, target: str, port: int, allowed: bool
) -> None:
    # A policy takes effect some seconds after its pod appears.
    eventually(
        lambda: connects(stack, source, probes[source], address(stack, target), port),
        lambda connected: connected is allowed,
        40,
        f"{source} to {target}:{port} {'open' if allowed else 'closed'}",
    )


def test_names_resolve_for_the_components_that_need_it(stack: Stack, probes: dict[str, str]) -> None:
    look = "import socket,sys; print(socket.gethostbyname(sys.argv[1]))"
    found = eventually(
        lambda: stack.kube.exec(probes["probe-model"], "probe-model", "python3", "-c", look, "cache-server").stdout.strip(),
        bool,
        40,
        "cache-server resolves",
    )
    assert found == stack.kube.get("service", "cache-server", "-n", stack.outputs.namespace)["spec"]["clusterIP"]


def test_prometheus_reads_the_cache_and_the_loaded_model(stack: Stack, probes: dict[str, str]) -> None:
    httpx.post(
        f"{stack.url}/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "Say it."}]},
        headers={"Authorization": f"Bearer {stack.key}"},
        timeout=60,
    ).raise_for_status()
    read = "import sys,urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
    url = f"http://{address(stack, 'metrics-exporter')}:9400/metrics"
    text = eventually(
        lambda: stack.kube.exec("monitoring", "probe-prometheus", "python3", "-c", read, url).stdout,
        lambda found: "cache_up 1.0" in found and "ollama_model_resident_bytes{" in found,
        40,
        "metrics of cache and fleet",
    )
    assert f'model="{MODEL}"' in text
