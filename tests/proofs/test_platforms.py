"""The stacks of examples/platforms on a cluster that imitates their platform: each answers, changes nothing twice, and goes alone.

15 minutes. kind, machines of one's own, and OpenShift, as far as a laptop can be one. An overlay takes what no laptop has from
Pulumi.dev.yaml, key by key; whatever it does not name is as the platform's example says.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from components.contract import USER_ID
from devcluster import cluster as embedded
from devcluster import processes
from devcluster.layout import Cluster, load
from devcluster.oci import Image
from infra.lifecycle import embedded as lifecycle
from infra.lifecycle import own_cluster, removal
from infra.lifecycle.bring_up import QUESTION, chat
from infra.lifecycle.deployment import Deployment
from infra.program.settings.committed import stack_config
from modelfleet_outputs import FleetOutputs
from tests.cluster import faults
from tests.cluster.kube import Kube, eventually
from tests.overlay import WITHOUT_GPUS, base, laid_over, on_platform, sections
from tests.proofs import imitated, ways
from tests.proofs.records import Proof

PROOF = Proof(
    "platforms",
    guards=(
        *("examples/platforms", "tests/proofs/platforms", "tests/proofs/imitated.py", "tests/overlay.py"),
        *("Pulumi.dev.yaml", "Pulumi.prod.yaml", "__main__.py", "infra", "components", "images", *ways.SERVICES),
    ),
)
NAME = f"test-{os.getpid()}-platforms"
_SIZES = (
    "models",
    *(f"fleet.{key}" for key in ("gpusPerPod", "contextLength", "minContext", "promptCache", "resources")),
    *("cache.maxMemory", "cache.resources", "apiServer.resources"),
)
_SERVER = ("model", "modelId", "contextLength", "resources")
"""Keys of the model server with the values of Pulumi.dev.yaml, where the sizes have them."""
AS_ON_A_LAPTOP = {
    "kind": (),
    "on-premises": (*_SIZES, "storage.hot", "storage.shared"),
    "openshift": (*_SIZES, "storage.hot.size", "storage.shared.size"),
}
"""Keys with the values of Pulumi.dev.yaml: a small model and sizes; on-premises also the drivers of volumes."""


@dataclass(frozen=True)
class Place:
    """A cluster with nothing on it, and the images of a stack."""

    cluster: Cluster
    built: Mapping[str, Image]
    kube: Kube

    def deployment(self, platform: str) -> Deployment:
        found = lifecycle.on_embedded(self.cluster, base(platform))
        return dataclasses.replace(found, state_dir=found.state_dir.with_name(platform))

    def volumes(self) -> list[str]:
        return [each["metadata"]["name"] for each in self.kube.get("persistentvolumes")["items"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    try:
        cluster, built = lifecycle.start_embedded(NAME, 1)
        kubectl = embedded.binaries() / "kubectl"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{kubectl.parent}:{os.environ['PATH']}")
            yield Place(cluster, built, Kube(kubectl, cluster.kubeconfig))
    finally:
        left = load(NAME)
        if left is not None:
            embedded.down(left)


def overlay(platform: str) -> dict[str, Any]:
    of_dev, found = sections(stack_config("dev")), dict[str, Any]()
    for path in AS_ON_A_LAPTOP[platform]:
        value: Any = of_dev
        for key in path.split("."):
            value = value[key]
        for key in reversed(path.split(".")):
            value = {key: value}
        found = laid_over(found, value)
    if "models" in found:
        (small,) = of_dev["modelServers"]
        found["modelServers"] = [
            {**each, **WITHOUT_GPUS, **{key: small[key] for key in _SERVER}} for each in on_platform(platform)["modelServers"]
        ]
    return found


def state(kube: Kube, platform: str) -> dict[str, Any]:
    """What is not the stack's, without what its own controllers write."""
    found: dict[str, Any] = {}
    for each in imitated.objects(platform):
        metadata = each["metadata"]
        there = kube.get(each["kind"], metadata["name"], *(("-n", metadata["namespace"]) if "namespace" in metadata else ()))
        del there["metadata"]["resourceVersion"]
        found[f"{each['kind']}/{metadata['name']}"] = {key: value for key, value in there.items() if key != "status"}
    return found


def deployed(place: Place, platform: str, more: Mapping[str, Any], figures: dict[str, Any]) -> tuple[Deployment, FleetOutputs]:
    """The stack as it was deployed. A second look finds nothing to change, and nothing to explain."""
    deployment = place.deployment(platform)
    overrides = laid_over(laid_over(on_platform(platform), overlay(platform)), more) | lifecycle.image_overrides(place.built)
    outputs = deployment.deploy(overrides)
    assert deployment.cli.preview(refresh=True).lines() == []
    assert [str(each) for each in deployment.findings()] == []
    figures.setdefault("objects", {})[platform] = len(deployment.objects())
    return deployment, outputs


def answers(deployment: Deployment, outputs: FleetOutputs, url: str) -> None:
    """The fleet and the model server know it."""
    assert len(outputs.models) == 2
    for model in outputs.models:
        assert "Paris" in chat(url, deployment.key(), model.id, QUESTION)


def taken_down(place: Place, deployment: Deployment) -> None:
    """Nothing stays but what storage.retain keeps, which is then deleted as a person would."""
    kept = {each.name for each in deployment.objects() if each.stays}
    retains = {"Namespace/modelfleet", "PersistentVolumeClaim/shared-models"} if deployment.stack == "prod" else set[str]()
    assert bool(retains) == bool(kept)
    assert retains <= kept
    removal.down(deployment, agreed=True)
    assert {each.name for each in deployment.objects()} == kept
    for name in sorted(kept):
        place.kube.run("delete", name, "-n", "modelfleet", "--wait=false")
    place.kube.run("wait", "--for=delete", "namespace/modelfleet", "--timeout=100s")
    place.kube.run("delete", "persistentvolumes", "--all", "--wait=false")


@pytest.mark.timeout(1800)
def test_on_premises(place: Place, figures: dict[str, Any]) -> None:
    """The GPU operator's RuntimeClass is used and not made, changed or deleted, and clients come by MetalLB's address."""
    kube, platform = place.kube, "on-premises"
    clients = {"apiServer": {"clientCidrs": [f"{place.cluster.host_address}/32"]}}
    with imitated.on_premises(place.cluster, kube):
        before = state(kube, platform)
        deployment, outputs = deployed(place, platform, clients, figures)
        answers(deployment, outputs, f"http://{place.cluster.control_plane.address}:{outputs.port}")
        service = kube.get("service", outputs.service, "-n", outputs.namespace)["spec"]
        assert service["loadBalancerClass"] == "metallb.io/metallb"
        assert service["loadBalancerSourceRanges"] == clients["apiServer"]["clientCidrs"]
        on_gpus = kube.get("daemonset", "metrics-exporter-gpu", "-n", outputs.namespace)
        assert on_gpus["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
        assert on_gpus["status"]["numberReady"] == 1
        assert "RuntimeClass/nvidia" not in {each.name for each in deployment.objects()}
        taken_down(place, deployment)
        assert state(kube, platform) == before


@pytest.mark.timeout(1800)
def test_openshift(place: Place, figures: dict[str, Any]) -> None:
    """Pods run as the users that the platform assigns, look names up where it has its DNS, and are reached by its Routes."""
    kube, platform = place.kube, "openshift"
    with imitated.openshift(place.cluster, kube):
        before = state(kube, platform)
        deployment, outputs = deployed(place, platform, {}, figures)
        namespace = outputs.namespace
        span = kube.get("namespace", namespace)["metadata"]["annotations"]["openshift.io/sa.scc.uid-range"]
        first = int(span.partition("/")[0])
        for pod in kube.get("pods", "-n", namespace)["items"]:
            for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
                assert container["securityContext"]["runAsUser"] == first, pod["metadata"]["name"]
        assert kube.exec(namespace, "ollama-0", "id", "-u").stdout.strip() == str(first)
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        own = {"runAsNonRoot": True, "runAsUser": USER_ID, "fsGroup": USER_ID, "seccompProfile": {"type": "RuntimeDefault"}}
        fixed = json.dumps(faults.pod(faults.container(securityContext=security), securityContext=own))
        assert "must be in the range" in kube.refused("create", "-n", namespace, "-f", "-", stdin=fixed)
        for model in outputs.models:
            assert "Paris" in by_a_route(kube, deployment, outputs, model.id)
        taken_down(place, deployment)
        assert state(kube, platform) == before


ASK = """\
import json, sys, urllib.request
url, key, body = sys.argv[1:]
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
with urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers), timeout=50) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
"""


def by_a_route(kube: Kube, deployment: Deployment, outputs: FleetOutputs, model: str) -> str:
    """An answer, as the pod gets it that Routes lead through."""
    url = f"http://{outputs.service}.{outputs.namespace}.svc.cluster.local:{outputs.port}{outputs.base_path}/chat/completions"
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64, "temperature": 0}
    done = kube.exec("openshift-ingress", "router", "python3", "-c", ASK, url, deployment.key(), json.dumps(body))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(1800)
def test_kind(place: Place, figures: dict[str, Any]) -> None:
    """Both tiers on its one class, which is of the node and gives a volume to one node alone."""
    kube, platform = place.kube, "kind"
    assert place.volumes() == []
    with imitated.kind(place.cluster, kube):
        assert not [name for name in processes.recorded(place.cluster) if name in ("provisioner-hot", "provisioner-shared")]
        before = state(kube, platform)
        deployment, outputs = deployed(place, platform, {}, figures)
        with own_cluster.port_forward(deployment, outputs) as url:
            answers(deployment, outputs, url)
        claims = {each["metadata"]["name"]: each["spec"] for each in kube.get("pvc", "-n", outputs.namespace)["items"]}
        assert claims.keys() == {"models-model-server-0", "models-ollama-0", "prometheus", "shared-models"}
        assert {(claim["storageClassName"], *claim["accessModes"]) for claim in claims.values()} == {("standard", "ReadWriteOnce")}
        made_by = {each["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"] for each in kube.get("pv")["items"]}
        assert made_by == {imitated.RANCHER}
        taken_down(place, deployment)
        eventually(place.volumes, lambda found: not found, 120, "volumes that went with their claims")
        assert state(kube, platform) == before
