"""Pods pull from a registry that asks for a password, with the real kubelet and containerd; `explain` names credentials that do not do."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from devcluster import oci
from infra.explain.causes import explain
from infra.explain.facts import Finding
from infra.explain.snapshot import collect
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.faults import Object, container, pod
from tests.cluster.kube import eventually
from tests.cluster.test_image_trust import unsigned
from tests.service.private_registry import PrivateRegistry, serving
from tests.service.processes import free_port

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def registry(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRegistry]:
    """What the cluster's own registry has, behind a password, at an address of its own that the nodes reach by plain HTTP."""
    made = PrivateRegistry(f"{stack.cluster.host_address}:{free_port()}", None)
    for node in stack.cluster.nodes:
        directory = node.directory / "config" / "certs.d" / made.address
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(f'server = "http://{made.address}"\n')
    with serving(tmp_path_factory.mktemp("private"), made, stack.cluster.state_dir / "registry", None, None):
        yield made


def secret(auth: str) -> Object:
    kind = "kubernetes.io/dockerconfigjson"
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "auth"}, "type": kind, "stringData": {".dockerconfigjson": auth}}


def findings(stack: Stack, namespace: str) -> list[Finding]:
    return explain(collect(stack.deployment.context, stack.deployment.kubeconfig, namespace, None))


@pytest.mark.parametrize(
    ("auth", "sentence"),
    [
        ("wrong", "refusing the credentials of Secret/auth for {image}, want credentials that may pull it; correct Secret/auth"),
        ("none", "refusing {image} without credentials, want some that may pull it; give the pod an imagePullSecret for that registry"),
        ("right", ""),
    ],
)
def test_a_pull_is_as_good_as_its_credentials(stack: Stack, registry: PrivateRegistry, auth: str, sentence: str) -> None:
    namespace, image = f"private-{auth}", f"{registry.address}/{unsigned(stack)}"
    pulls = {} if auth == "none" else {"imagePullSecrets": [{"name": "auth"}]}
    given = {"wrong": [secret(registry.auth("of-yesterday"))], "none": [], "right": [secret(registry.auth())]}[auth]
    stack.kube.run("create", "namespace", namespace)
    try:
        eventually(lambda: stack.kube.run("get", "serviceaccount", "default", "-n", namespace, check=False), bool, 30, "an account")
        for each in [*given, pod(container(image=image, imagePullPolicy="Always"), **pulls)]:
            stack.kube.run("apply", "-n", namespace, "-f", "-", stdin=json.dumps(each))
        if sentence:
            found = eventually(
                lambda: findings(stack, namespace), lambda found: [each.cause for each in found] == ["image-denied"], 60, "it"
            )
            assert sentence.format(image=image) in str(found[0])
            assert "of-yesterday" not in str(found[0])
        else:
            eventually(
                lambda: stack.kube.get("pod", "p", "-n", namespace)["status"]["phase"], lambda phase: phase == "Running", 60, "it runs"
            )
    finally:
        stack.kube.run("delete", "namespace", namespace, "--wait=false")


def test_the_stack_pulls_with_the_logins_of_its_configuration(stack: Stack, registry: PrivateRegistry, tmp_path: Path) -> None:
    namespace, cli = stack.outputs.namespace, stack.deployment.cli
    image = stack.images["api-server"]
    reference = f"{registry.address}/{oci.repository(image.name)}@{image.digest}"
    overrides = copy.deepcopy(stack.overrides)
    overrides["images"]["refs"]["api-server"] = reference
    stack.deployment.configure(overrides)
    cli.run("config", "set", "--secret", "modelfleet:registryAuth", stdin=registry.auth())
    try:
        stack.deployment.deploy(overrides)
        pods = stack.kube.get("pods", "-n", namespace)["items"]
        made = [each for each in pods if "deletionTimestamp" not in each["metadata"] and each["status"]["phase"] in ("Pending", "Running")]
        assert {json.dumps(each["spec"].get("imagePullSecrets")) for each in made} == {'[{"name": "registry-auth"}]'}
        (server,) = (each for each in made if each["metadata"]["labels"]["app.kubernetes.io/name"] == "api-server")
        assert server["spec"]["containers"][0]["image"] == reference
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Say it."}]}
        answer = httpx.post(
            f"{stack.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {stack.key}"}, timeout=30, trust_env=False
        )
        assert SCRIPT in answer.raise_for_status().text
        # Another password is taken without a new pod.
        uids = {each["metadata"]["uid"] for each in made}
        cli.run("config", "set", "--secret", "modelfleet:registryAuth", stdin=registry.auth("of-tomorrow"))
        stack.deployment.deploy(overrides)
        assert uids <= {each["metadata"]["uid"] for each in stack.kube.get("pods", "-n", namespace)["items"]}
        exported = cli.run("stack", "export")
        assert registry.auth() not in exported
        assert "of-tomorrow" not in exported
    finally:
        # A secret of this stack cannot be read by those that other tests make from its configuration.
        cli.run("config", "rm", "modelfleet:registryAuth")
        stack.deployment.deploy(stack.overrides)
    assert "registry-auth" not in stack.kube.run("get", "secrets", "-n", namespace)
