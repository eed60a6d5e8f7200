"""`make check` tries a cluster with the rights of a deployer, says what it does, and leaves nothing."""

import dataclasses
from collections.abc import Iterator

import pytest

from infra.lifecycle import cluster_check
from infra.program.settings.gpu import GpuSettings
from tests.cluster.conftest import Stack
from tests.cluster.test_ownership import account, nothing_changes

pytestmark = pytest.mark.cluster
LABELLED = ("namespaces,storageclasses", "-l", "modelfleet.dev/cluster-check")


@pytest.fixture(scope="module")
def deployer(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with account(stack, "deployer", tmp_path_factory.mktemp("accounts")) as kubeconfig:
        yield kubeconfig


@pytest.fixture
def asked(stack: Stack) -> cluster_check.Asked:
    return cluster_check.asked_of(stack.deployment.cli.read_config(), "", None)


def test_a_cluster_that_does_what_a_stack_needs(stack: Stack, asked: cluster_check.Asked, deployer: str) -> None:
    with nothing_changes(stack):
        answers = cluster_check.check(stack.deployment.context, deployer, asked)
    assert [answer.error for answer in answers] == ["", "", ""]
    assert answers[0].says == "network policies are enforced"
    assert [answer.says.partition(" came,")[0] for answer in answers[1:]] == [
        f"modelfleet:storage.hot: a volume of {asked.storage.hot.size}",
        f"modelfleet:storage.shared: a volume of {asked.storage.shared.size}",
    ]
    assert stack.kube.get(*LABELLED)["items"] == []


def test_one_that_enforces_nothing_and_makes_no_volumes(
    stack: Stack, asked: cluster_check.Asked, deployer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy for other pods than ours is what a policy is to a cluster that enforces none."""
    monkeypatch.setattr(cluster_check, "VOLUME_S", 10)
    looks = f"range({cluster_check.POLICY_S})"
    assert looks in cluster_check._REACHES
    monkeypatch.setattr(cluster_check, "_REACHES", cluster_check._REACHES.replace(looks, "range(8)"))
    monkeypatch.setattr(cluster_check, "CUT_OFF", "nobody")
    hot = asked.storage.hot.model_copy(update={"provisioner": None, "class_name": "nowhere"})
    shared = asked.storage.shared.model_copy(update={"provisioner": "nobody.example.com"})
    storage = asked.storage.model_copy(update={"hot": hot, "shared": shared})
    with nothing_changes(stack):
        policies, first, second = cluster_check.check(
            stack.deployment.context, deployer, dataclasses.replace(asked, storage=storage, production=True)
        )
    assert policies.error.startswith("network policies: got a pod that a policy cuts off, and that reaches the cluster's API all the same")
    assert first.error.startswith(
        'modelfleet:storage.hot.className: got ProvisioningFailed (storageclass.storage.k8s.io "nowhere" not found)'
    )
    assert second.error.startswith("modelfleet:storage.shared.provisioner: got ExternalProvisioning (")
    assert "nobody.example.com" in second.error
    assert stack.kube.get(*LABELLED)["items"] == []


def test_a_node_that_should_have_gpus_and_has_none(stack: Stack, asked: cluster_check.Asked, deployer: str) -> None:
    """A pod reads the files of each node. The cluster's own nodes have neither driver nor toolkit."""
    gpu = GpuSettings.model_validate({"enabled": True, "memory": "46068Mi", "nodes": {"kubernetes.io/os": "linux"}})
    with nothing_changes(stack):
        answers = cluster_check.check(stack.deployment.context, deployer, dataclasses.replace(asked, gpu=gpu))
    said = [answer.error or answer.says for answer in answers[3:]]
    for node in stack.cluster.nodes:
        found = [line.removeprefix(f"node {node.name}, ") for line in said if line.startswith(f"node {node.name}, ")]
        layers = [line.partition(":")[0] for line in found]
        assert layers == ["driver", "toolkit", "runtime", "handler", "CDI", "devices", "taint"], said
        assert found[0].startswith("driver: got no /proc/driver/nvidia/version, want")
        assert found[2].startswith("runtime: containerd://2.")
        assert found[5] == "devices: got none, want nvidia.com/gpu; install the device plugin, or look at its pod on this node"
    assert stack.kube.get(*LABELLED)["items"] == []
