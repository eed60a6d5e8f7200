"""A HorizontalPodAutoscaler sets the fleet by what the gateways say is needed, through Prometheus and prometheus-adapter, with the objects of
docs/gateway.md. 12 minutes, three of them to compile the adapter."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import yaml

from api_server.pauses import PAUSE_S
from components.contract import PORTS, PROMETHEUS
from devcluster import cluster as embedded
from devcluster.oci import RuntimeConfig, assemble, cached_layer, write_tree
from devcluster.system_images import images_cache
from devcluster.toolchain import entry
from infra.program.settings.committed import stack_config
from tests.cluster.conftest import Stack
from tests.cluster.kube import eventually
from tests.cluster.test_scale_to_zero import replicas
from tests.proofs.modules import Module, compiled
from tests.proofs.records import ROOT, Proof
from tests.proofs.test_agents import agree, small, turn

PROOF = Proof(
    "autoscaler",
    guards=(
        "api_server",
        "components",
        "devcluster",
        "docs/gateway.md",
        "infra/program",
        "Pulumi.dev.yaml",
        "tests/proofs/prometheus-adapter",
    ),
)
ADAPTER = Module(
    name="prometheus-adapter",
    packages={"prometheus-adapter": "sigs.k8s.io/prometheus-adapter/cmd/adapter"},
    cpu_minutes=3.4,
    on_demand=True,
)
NAMESPACE, PORT = "autoscaling", 6443
METRIC = "api_server_needed_servers"
STABLE_S = 30
"""In place of the 900 s of the page: how long a lower number must hold."""


def on_the_page(kind: str) -> dict[str, Any]:
    """The example of docs/gateway.md that has `kind` in it."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "gateway.md").read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if kind in block]
    return yaml.safe_load(found)


def image(cluster: Any) -> str:
    """The adapter's, pushed: its reference."""
    compiled(ADAPTER)
    built = entry(ADAPTER)
    binary = built / "prometheus-adapter"
    layer = cached_layer(images_cache() / f"{built.name}.tar", lambda target: write_tree(target, [("adapter", binary)]))
    made = assemble("modelfleet/prometheus-adapter", [layer], RuntimeConfig(entrypoint=["/adapter"], user="65534:65534"))
    embedded.push(cluster, [made])
    return made.reference


def adapter(stack: Stack, reference: str) -> list[dict[str, Any]]:
    """What its documentation has for a cluster: rights, a pod, a Service, and the metrics API that leads to it."""
    prometheus = f"http://{PROMETHEUS}.{stack.outputs.namespace}.svc:{PORTS[PROMETHEUS]}"
    inside = {"name": "adapter", "namespace": NAMESPACE}
    account = {"kind": "ServiceAccount", **inside}
    rbac = "rbac.authorization.k8s.io"

    def bound(name: str, role: str, kind: str = "ClusterRole", **metadata: str) -> dict[str, Any]:
        return {
            "apiVersion": f"{rbac}/v1",
            "kind": f"{kind}Binding",
            "metadata": {"name": name, **metadata},
            "roleRef": {"apiGroup": rbac, "kind": kind, "name": role},
            "subjects": [account],
        }

    container = {
        "name": "adapter",
        "image": reference,
        "args": [
            f"--prometheus-url={prometheus}",
            "--config=/etc/adapter/config.yaml",
            "--cert-dir=/certificates",
            f"--secure-port={PORT}",
            "--metrics-relist-interval=15s",
        ],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT, "scheme": "HTTPS"}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/adapter"}, {"name": "certificates", "mountPath": "/certificates"}],
    }
    pod = {
        "serviceAccountName": "adapter",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "adapter"}}, {"name": "certificates", "emptyDir": {}}],
    }
    labels = {"app": "adapter"}
    deployment = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    service = {"name": "adapter", "namespace": NAMESPACE}
    api = {"group": "external.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": inside},
        bound("adapter-delegates", "system:auth-delegator"),
        bound("adapter-reads", "extension-apiserver-authentication-reader", "Role", namespace="kube-system"),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": inside,
            "data": {"config.yaml": yaml.safe_dump(on_the_page("externalRules"))},
        },
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": inside, "spec": deployment},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": inside,
            "spec": {"selector": labels, "ports": [{"port": 443, "targetPort": PORT}]},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {**api, "service": service, "insecureSkipTLSVerify": True},
        },
    ]


def autoscaler(namespace: str) -> dict[str, Any]:
    """The page's, but for its patience, its bounds and its namespace."""
    found = on_the_page("kind: HorizontalPodAutoscaler")
    found["metadata"]["namespace"] = namespace
    found["spec"]["maxReplicas"] = 2
    found["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = STABLE_S
    return found


@pytest.fixture(scope="module")
def scaled(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Two replicas that each have the memory for two agents, and an autoscaler over them."""
    reference = image(stack.cluster)
    prometheus = stack_config("dev")["modelfleet:monitoring"]["prometheus"]
    clients = [{"namespace": NAMESPACE, "labels": {"app": "adapter"}}]
    stack.overrides["monitoring"] = {"prometheus": {**prometheus, "clients": clients}}
    fleet = small(stack, tmp_path_factory.mktemp("models"), numParallel=2, autoscaled=True)
    for each in adapter(fleet, reference):
        fleet.kube.run("apply", "-f", "-", stdin=json.dumps(each))
    fleet.kube.run("rollout", "status", "deployment/adapter", "-n", NAMESPACE, "--timeout=90s")
    agree(fleet)
    return fleet


def needed(fleet: Stack) -> int | None:
    """The number as the autoscaler reads it, of this namespace; None while nobody knows it."""
    path = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{fleet.outputs.namespace}/{METRIC}"
    said = fleet.kube.run("get", "--raw", path, check=False)
    items = json.loads(said)["items"] if said else []
    return int(items[0]["value"]) if items else None


def test_an_idle_fleet_goes_to_its_least(scaled: Stack, figures: dict[str, Any]) -> None:
    eventually(lambda: needed(scaled), lambda found: found is not None, 120, "the number by prometheus-adapter")
    scaled.kube.run("scale", "statefulset/ollama", "-n", scaled.outputs.namespace, "--replicas=2")
    began = time.monotonic()
    scaled.kube.run("apply", "-f", "-", stdin=json.dumps(autoscaler(scaled.outputs.namespace)))
    eventually(lambda: replicas(scaled), lambda count: count == 1, 240, "one replica")
    figures["one replica of an idle fleet, s"] = round(time.monotonic() - began)


def test_it_grows_for_an_agent_that_has_no_room_and_shrinks_when_it_has_gone(scaled: Stack, figures: dict[str, Any]) -> None:
    """Each turn of each agent is answered, while a replica comes and while it goes."""
    ended, began = Event(), time.monotonic()

    def works(agent: str) -> list[int]:
        found: list[int] = []
        while not ended.is_set():
            # Within the context. A history that begins anew is a further conversation, and that of before holds its memory for a minute.
            found.append(turn(scaled, agent, len(found) % 60).status_code)
            time.sleep(3)
        return found

    with ThreadPoolExecutor(3) as pool:
        agents = [pool.submit(works, agent) for agent in ("four", "five")]
        try:
            time.sleep(5)
            third = pool.submit(turn, scaled, "six", 0)
            eventually(lambda: (replicas(scaled), needed(scaled)), lambda found: found[0] == 2, 240, "two replicas")
            figures["a second replica is wanted for a third agent after, s"] = round(time.monotonic() - began)
            assert third.result(240).status_code == 200
            figures["the third agent is answered after, s"] = round(time.monotonic() - began)
            time.sleep(PAUSE_S)
            eventually(lambda: (replicas(scaled), needed(scaled)), lambda found: found[0] == 1, 300, "one replica again")
        finally:
            ended.set()
        answers = [each.result(120) for each in agents]
    assert [set(each) for each in answers] == [{200}, {200}]
    figures["turns of two agents meanwhile"] = sum(len(each) for each in answers)


def test_the_stack_leaves_the_number_alone(scaled: Stack) -> None:
    scaled.deployment.cli.preview(expect_no_changes=True)
