"""Only signed images run where the stack says so: the webhook as the API server calls it, and the pods of the stack through it."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devcluster import network
from devcluster.layout import REGISTRY
from images import signing
from infra.lifecycle import removal
from infra.lifecycle.bring_up import chat
from infra.lifecycle.deployment import Deployment
from infra.preparation.certificates import verifier_tls
from infra.program.settings.cluster import verifier_namespace
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.kube import eventually
from tests.cluster.test_ownership import account, another_stack, nothing_changes

pytestmark = pytest.mark.cluster


def pod(name: str, image: str) -> str:
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "c", "image": image, "command": ["sleep", "3600"], "securityContext": security}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


def trusting(stack: Stack) -> dict[str, Any]:
    """The stack's overrides with trust in a key; all of its images are signed by it."""
    directory = stack.deployment.state_dir / "signing"
    with network.inside(stack.cluster.fabric_netns):
        public = signing.sign(stack.images.values(), REGISTRY, directory)
    overrides = json.loads(json.dumps(stack.overrides))
    overrides["images"]["trust"] = {"publicKeys": public, "mirror": f"http://{REGISTRY}", "replicas": 1}
    return overrides


def configure(deployment: Deployment, overrides: dict[str, Any], namespace: str) -> None:
    """Write the overrides, and the certificate of the verifier of a fleet in that namespace."""
    deployment.configure(overrides)
    deployment.cli.run("config", "set", "--secret", "modelfleet:verifierTls", stdin=verifier_tls(namespace))


def distrust(stack: Stack) -> None:
    """Deploy the stack as it was. A secret of this stack cannot be read by those that other tests make from its configuration."""
    stack.deployment.cli.run("config", "rm", "modelfleet:verifierTls")
    stack.deployment.deploy(stack.overrides)


def unsigned(stack: Stack) -> str:
    """The helper image by its digest; nobody signed it."""
    with network.inside(stack.cluster.fabric_netns), httpx.Client(base_url=f"http://{REGISTRY}", trust_env=False) as client:
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        found = client.head("/v2/modelfleet/base/manifests/embedded", headers=accept).raise_for_status()
    return f"modelfleet/base@{found.headers['docker-content-digest']}"


def answered(url: str, headers: dict[str, str], body: dict[str, object]) -> bool:
    try:
        return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=10, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def trusted(stack: Stack) -> Iterator[dict[str, Any]]:
    """What a stack has to say to run signed images alone; the first one says it until the end of this file."""
    overrides = trusting(stack)
    configure(stack.deployment, overrides, stack.outputs.namespace)
    try:
        stack.deployment.deploy(overrides)
        yield overrides
    finally:
        distrust(stack)
    assert verifier_namespace(stack.outputs.namespace) not in stack.kube.run("get", "namespaces")


def test_unsigned_images_are_refused_with_one_line_and_signed_ones_run(stack: Stack, trusted: dict[str, Any]) -> None:
    namespace, helper, reference = stack.outputs.namespace, "modelfleet/base:embedded", unsigned(stack)
    done = stack.kube.refused("apply", "-n", namespace, "-f", "-", stdin=pod("tagged", helper))
    assert "spec.containers[0].image: got 'modelfleet/base:embedded', want an image by digest, since a tag can move" in done
    done = stack.kube.refused("apply", "-n", namespace, "-f", "-", stdin=pod("unsigned", reference))
    assert f"spec.containers[0].image: got {reference}, want a signature by a key of images.trust" in done
    stack.kube.run("apply", "-n", "default", "-f", "-", stdin=pod("elsewhere", helper))
    stack.kube.run("delete", "pod", "elsewhere", "-n", "default", "--wait=false")
    # The stack's own pods pass: one is made again, through the webhook.
    stack.kube.run("delete", "pod", "-n", namespace, "-l", "app.kubernetes.io/name=api-server", "--grace-period=0", "--force")
    headers = {"Authorization": f"Bearer {stack.key}"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say it."}]}
    eventually(lambda: answered(stack.url, headers, body), bool, 60, "an answer by a pod that was let in")


def test_two_fleets_live_in_one_cluster_and_one_goes_without_the_other_noticing(
    stack: Stack, trusted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is made by an account with no more rights than the documented ones, and looked at by one that may only read.

    Both let signed images in alone: each has a webhook of its own, and one that comes or goes opens no namespace of the other's.
    """
    second = another_stack(stack, tmp_path, monkeypatch)
    service = {**stack.overrides.get("apiServer", {}), "nodePort": 30123}
    image = unsigned(stack)
    refused = f"spec.containers[0].image: got {image}, want a signature by a key of images.trust"

    def is_guarded(namespace: str) -> bool:
        return refused in stack.kube.refused("apply", "-n", namespace, "-f", "-", stdin=pod("unsigned", image))

    assert is_guarded(stack.outputs.namespace)
    with account(stack, "deployer", tmp_path) as deploys, account(stack, "previewer", tmp_path) as reads, nothing_changes(stack):
        deployer = dataclasses.replace(second, kubeconfig=deploys)
        overrides = {**trusted, "cluster": {"namespace": "team-b"}, "apiServer": service}
        configure(deployer, overrides, "team-b")
        outputs = deployer.deploy(overrides)
        assert (outputs.namespace, outputs.storage_classes.hot) == ("team-b", "team-b-local-nvme")
        url = f"http://{stack.cluster.control_plane.address}:{outputs.node_port}"
        assert chat(url, second.key_file.read_text(), MODEL, "Say it.") == SCRIPT
        assert is_guarded("team-b")
        assert is_guarded(stack.outputs.namespace)
        assert dataclasses.replace(second, kubeconfig=reads).cli.preview(refresh=True).lines() == []
        removal.down(deployer, agreed=True)
    assert is_guarded(stack.outputs.namespace)
    assert chat(stack.url, stack.key, MODEL, "Say it.") == SCRIPT
