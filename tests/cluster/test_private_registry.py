"""Pods pull from a registry that asks for a password, with the real kubelet and containerd; `explain` names credentials that do not do."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from devcluster import oci
from infra import ROOT
from infra.analysis.explain.causes import explain
from infra.analysis.explain.facts import Finding
from infra.analysis.explain.snapshot import collect
from infra.engine.cli import PulumiCli
from tests.cluster.conftest import Stack
from tests.cluster.faults import Object, container, pod
from tests.cluster.kube import eventually
from tests.cluster.test_image_trust import unsigned
from tests.service.private_registry import PASSWORD, PrivateRegistry, behind_password
from tests.service.processes import free_port

pytestmark = pytest.mark.cluster


@contextmanager
def reached_by_nodes(stack: Stack, work: Path) -> Iterator[PrivateRegistry]:
    """What the cluster's own registry has, behind a password, at an address of its own that the nodes reach by plain HTTP."""
    made = PrivateRegistry(f"{stack.cluster.host_address}:{free_port()}", None)
    for node in stack.cluster.nodes:
        directory = node.directory / "config" / "certs.d" / made.address
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(f'server = "http://{made.address}"\n')
    with behind_password(work, made, stack.cluster.state_dir / "registry"):
        yield made


@pytest.fixture(scope="module")
def registry(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRegistry]:
    with reached_by_nodes(stack, tmp_path_factory.mktemp("private")) as found:
        yield found


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
    pulls: dict[str, Any] = {} if auth == "none" else {"imagePullSecrets": [{"name": "auth"}]}
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


PROGRAM = """
import os
import pulumi
import pulumi_kubernetes as k8s
from components import CacheServer, CacheServerArgs, Governance, GovernanceArgs, ResourceArgs
from components.registry_auth import pulls

config = pulumi.Config("tiny")
opts = pulumi.ResourceOptions(providers=[k8s.Provider("cluster", context=os.environ["TINY_CONTEXT"])])
limits = {"gpu_quota": 0, "gpu_resource": "nvidia.com/gpu", "cpu": "2", "memory": "2Gi", "pods": 10, "retain": False}
auth = config.require_secret("auth")
governance = Governance("governance", GovernanceArgs(namespace="private-fleet", registry_auth=auth, **limits), opts)
CacheServer(
    "cache",
    CacheServerArgs(
        namespace=governance.namespace,
        image=config.require("image"),
        password=pulumi.Output.secret("sufficientlylong1"),
        max_memory_bytes=2**24,
        eviction_policy="allkeys-lru",
        resources=ResourceArgs(cpu="20m", memory="64Mi"),
    ),
    pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[governance], transformations=[pulls])),
)
"""


@pytest.fixture
def tiny(stack: Stack, registry: PrivateRegistry, tmp_path: Path) -> Iterator[PulumiCli]:
    """Two components of ours, whose image is in the private registry alone as far as their pods know."""
    program, image = tmp_path / "program", stack.images["cache-server"]
    program.mkdir()
    runtime = {"name": "python", "options": {"toolchain": "pip", "virtualenv": str(ROOT / ".venv")}}
    (program / "Pulumi.yaml").write_text(json.dumps({"name": "tiny", "runtime": runtime}))
    (program / "__main__.py").write_text(PROGRAM)
    environment = {"KUBECONFIG": stack.deployment.kubeconfig, "TINY_CONTEXT": stack.deployment.context, "PYTHONPATH": str(ROOT)}
    cli = PulumiCli(stack="test", state_dir=tmp_path / "state", program=program, env=environment)
    cli.ensure_stack()
    cli.write_config({"tiny:image": f"{registry.address}/{oci.repository(image.name)}@{image.digest}"})
    yield cli
    cli.destroy()


def test_components_pull_with_the_login_and_a_new_password_replaces_no_pod(
    stack: Stack, registry: PrivateRegistry, tiny: PulumiCli
) -> None:
    def deployed(password: str) -> dict[str, Any]:
        tiny.run("config", "set", "--secret", "auth", stdin=registry.auth(password))
        tiny.up()
        (found,) = stack.kube.get("pods", "-n", "private-fleet")["items"]
        return found

    first = deployed(PASSWORD)
    assert first["spec"]["imagePullSecrets"] == [{"name": "registry-auth"}]
    assert first["spec"]["containers"][0]["image"].startswith(registry.address)
    assert first["status"]["containerStatuses"][0]["ready"]
    assert deployed("of-tomorrow")["metadata"]["uid"] == first["metadata"]["uid"]
    kept = stack.kube.get("secret", "registry-auth", "-n", "private-fleet")["data"][".dockerconfigjson"]
    assert base64.b64decode(kept).decode() == registry.auth("of-tomorrow")
    exported = tiny.run("stack", "export")
    assert "of-tomorrow" not in exported
    assert kept not in exported
