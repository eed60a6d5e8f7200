"""Default deny holds, and the allowed edges are open: every pair of pods on every port, tried with real connections.

Each component has a stand-in pod with its labels that listens on every port of the contract, so a refused connection can
only be a policy's doing.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from components.contract import (
    ACTIVATOR,
    AGENT_CONTROL_PORT,
    AGENT_PORT,
    API_METRICS_PORT,
    API_SERVER,
    COMPONENTS,
    DNS_CLIENTS,
    EDGES,
    PORTS,
    PROMETHEUS,
    SCRAPED,
)
from devcluster.layout import REGISTRY
from tests.cluster.conftest import MODEL, Stack
from tests.cluster.kube import eventually

pytestmark = pytest.mark.cluster
UNUSED_PORT = 9999
ALL_PORTS = (*sorted(PORTS.values()), API_METRICS_PORT, AGENT_PORT, AGENT_CONTROL_PORT, UNUSED_PORT)
STRANGER, OUTSIDER, OTHER_PROMETHEUS = "stranger", "outsider", "other-prometheus"
DEPLOYED = (*COMPONENTS, PROMETHEUS)
"""Components of the dev stack."""
LISTEN = """
import asyncio, sys
async def main():
    for port in map(int, sys.argv[1:]):
        await asyncio.start_server(lambda reader, writer: writer.close(), "0.0.0.0", port)
    await asyncio.Event().wait()
asyncio.run(main())
"""
CONNECT = """
import asyncio, json, sys
async def one(name, host, port):
    try:
        async with asyncio.timeout(3):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
        return [name, port, True]
    except OSError:
        return [name, port, False]
async def main():
    print(json.dumps(await asyncio.gather(*(one(*target) for target in json.loads(sys.argv[1])))))
asyncio.run(main())
"""
LOOK_UP = "import socket,sys; print(socket.gethostbyname(sys.argv[1]))"
READ = "import sys,urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"

Connection = tuple[str, str, int]
"""(source, target, port)"""


@dataclass(frozen=True)
class Probe:
    """A pod that listens and connects. It is never ready, so no Service sends it anything."""

    name: str
    namespace: str
    address: str
    node: str


def _pod(name: str, namespace: str, component: str | None) -> dict[str, object]:
    labels = {"probe": name} | ({"app.kubernetes.io/name": component} if component else {})
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "runAsUser": 10001}
    container = {
        "name": "probe",
        "image": "modelfleet/base:embedded",
        "command": ["python3", "-c", LISTEN, *map(str, ALL_PORTS)],
        "securityContext": {**security, "seccompProfile": {"type": "RuntimeDefault"}},
        "readinessProbe": {"exec": {"command": ["false"]}},
        "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"probe-{name}", "namespace": namespace, "labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False},
    }


@pytest.fixture(scope="module")
def probes(stack: Stack) -> Iterator[dict[str, Probe]]:
    with standing(stack, DEPLOYED) as found:
        yield found


@contextmanager
def standing(stack: Stack, components: Sequence[str]) -> Iterator[dict[str, Probe]]:
    """A stand-in for each component, one without a component, and two in other namespaces."""
    own = stack.outputs.namespace
    places: dict[str, tuple[str, str | None]] = {component: (own, component) for component in components}
    places |= {STRANGER: (own, None), OUTSIDER: ("default", None), OTHER_PROMETHEUS: ("monitoring", None)}
    stack.kube.run("create", "namespace", "monitoring")
    documents = [_pod(name, namespace, component) for name, (namespace, component) in places.items()]
    stack.kube.run("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))

    def found() -> dict[str, Probe]:
        pods = stack.kube.get("pods", "-A", "-l", "probe")["items"]
        return {
            pod["metadata"]["labels"]["probe"]: Probe(
                pod["metadata"]["name"], pod["metadata"]["namespace"], pod["status"]["podIP"], pod["spec"]["nodeName"]
            )
            for pod in pods
            if pod["status"]["phase"] == "Running"
        }

    try:
        yield eventually(found, lambda running: running.keys() == places.keys(), 90, "all probes run")
    finally:
        for namespace in (own, "default"):
            stack.kube.run("delete", "pods", "-n", namespace, "-l", "probe", "--wait=false")
        stack.kube.run("delete", "namespace", "monitoring")


def expected(kube_dns: str, components: Sequence[str]) -> set[Connection]:
    """What the table allows. Pods of other namespaces are under no policy of ours, so they get as far as our ingress lets them."""
    allowed = {(edge.source, edge.target, edge.port) for edge in EDGES}
    allowed |= {(ACTIVATOR, "kube-apiserver", 6443)}
    allowed |= {(OTHER_PROMETHEUS, component, port) for component, port in SCRAPED.items()}
    # The dev stack lets any address reach the API server; who may connect is decided there by key.
    allowed |= {(source, API_SERVER, PORTS[API_SERVER]) for source in (OUTSIDER, OTHER_PROMETHEUS)}
    allowed |= {(source, kube_dns, 53) for source in (*DNS_CLIENTS, OUTSIDER, OTHER_PROMETHEUS)}
    outside = (OUTSIDER, OTHER_PROMETHEUS)
    allowed |= {(source, target, port) for source in outside for target in outside for port in ALL_PORTS}
    absent = {*COMPONENTS, ACTIVATOR, PROMETHEUS} - {*components}
    return {each for each in allowed if each[0] != each[1] and not absent & {*each}}


def test_defect_38_every_pair_of_pods_on_every_port_is_as_the_table_says(stack: Stack, probes: dict[str, Probe]) -> None:
    made = agrees_with_the_table(stack, probes, DEPLOYED)
    nodes = {(probes[source].node == probes[target].node) for source, target, _ in made if target in probes}
    assert nodes == {True, False}, "pairs on one node and across nodes were both tried"


def agrees_with_the_table(stack: Stack, probes: dict[str, Probe], components: Sequence[str]) -> set[Connection]:
    """The connections that could be made, once they are those of the table."""
    dns = stack.kube.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"][0]["status"]["podIP"]
    api = stack.cluster.control_plane.address
    wanted = expected("kube-dns", components)

    def connected_from(source: str) -> set[Connection]:
        probe = probes[source]
        targets = [(name, each.address, port) for name, each in probes.items() if name != source for port in ALL_PORTS]
        targets += [("kube-dns", dns, 53)]
        # Nothing of the namespace but the activator may talk to the cluster's API, and nothing to the world outside.
        targets += [("kube-apiserver", api, 6443), ("registry", REGISTRY.partition(":")[0], 5000)] if source in components else []
        done = stack.kube.exec(probe.namespace, probe.name, "python3", "-c", CONNECT, json.dumps(targets))
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout)
        assert len(results) == len(targets)
        return {(source, target, port) for target, port, connected in results if connected}

    def attempt() -> set[Connection]:
        # Each waits some seconds for what does not answer.
        with ThreadPoolExecutor(5) as pool:
            return set().union(*pool.map(connected_from, probes))

    # A policy takes effect some seconds after its pod appears.
    eventually(lambda: attempt() ^ wanted, lambda differing: not differing, 60, "connections that differ from the table are gone")
    return wanted


def address(stack: Stack, component: str) -> str:
    pods = stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", f"app.kubernetes.io/name={component},!probe")["items"]
    return str(pods[0]["status"]["podIP"])


def test_names_resolve_for_the_components_that_need_it(stack: Stack, probes: dict[str, Probe]) -> None:
    for component in {*DNS_CLIENTS} & {*COMPONENTS}:
        probe = probes[component]
        found = stack.kube.exec(probe.namespace, probe.name, "python3", "-c", LOOK_UP, "cache-server").stdout.strip()
        assert found == stack.kube.get("service", "cache-server", "-n", stack.outputs.namespace)["spec"]["clusterIP"], component


def test_prometheus_reads_the_cache_and_the_loaded_model(stack: Stack, probes: dict[str, Probe]) -> None:
    urls = {
        f"http://{address(stack, 'metrics-exporter')}:9400/metrics": "cache_up 1.0",
        f"http://{address(stack, 'ollama')}:{AGENT_PORT}/metrics": f'ollama_model_resident_bytes{{model="{MODEL}"}}',
    }
    for url, sample in urls.items():

        def read(url: str = url) -> str:
            return stack.kube.exec("monitoring", probes[OTHER_PROMETHEUS].name, "python3", "-c", READ, url).stdout

        eventually(read, lambda found, sample=sample: sample in found, 40, f"{sample} at {url}")
