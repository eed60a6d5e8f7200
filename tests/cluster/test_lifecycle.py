"""Drift: one object of every kind is changed by hand, named by the next `make up`, and set back by it."""

import json
from typing import Any

import pytest
import yaml

from infra.engine.changes import ImpossibleError
from tests.cluster.conftest import Stack
from tests.golden.test_golden import GOLDEN

pytestmark = pytest.mark.cluster
LABEL = {"metadata": {"labels": {"app.kubernetes.io/part-of": "drifted"}}}
"""For what cannot change otherwise once it is made."""
BY_HAND: dict[str, tuple[str, dict[str, Any]]] = {
    "ConfigMap": ("cache-config", LABEL),
    "DaemonSet": ("metrics-exporter-gpu", {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 99}}}}),
    "Deployment": ("cache-server", {"spec": {"replicas": 2}}),
    "Job": ("models-writer", LABEL),
    "LimitRange": ("governance-defaults", LABEL),
    "Namespace": ("modelfleet", {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}),
    "NetworkPolicy": ("default-deny", {"spec": {"policyTypes": ["Ingress"]}}),
    "PersistentVolumeClaim": ("shared-models", LABEL),
    "PodDisruptionBudget": ("ollama", {"spec": {"maxUnavailable": 2}}),
    "PriorityClass": ("gpu-priority", {"description": "drifted"}),
    "ResourceQuota": ("governance-quota", {"spec": {"hard": {"pods": "99"}}}),
    "RuntimeClass": ("nvidia", LABEL),
    "Secret": ("api-server-keys", LABEL),
    "ServiceAccount": ("ollama", LABEL),
    "Service": ("ollama", {"spec": {"ports": [{"name": "http", "port": 11434, "targetPort": 1}]}}),
    "StatefulSet": ("ollama", {"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}}),
    "StorageClass": ("local-nvme", {"allowVolumeExpansion": False}),
}
"""Kind to the object that is changed, by its name or by what its generated name starts with, and the change."""


def rendered_kinds() -> set[str]:
    return {yaml.safe_load(path.read_text())["kind"] for stack in ("dev", "prod") for path in (GOLDEN / stack).glob("*.yaml")}


def test_every_kind_that_is_rendered_is_changed_by_hand() -> None:
    assert set(BY_HAND) == rendered_kinds()


def holds(wanted: Any, found: Any) -> bool:
    """Whether every field of `wanted` is in `found`."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(holds(value, found.get(name)) for name, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(holds, wanted, found))
    return bool(wanted == found)


def of_every_kind(stack: Stack) -> dict[str, dict[str, Any]]:
    """Kind to the object of BY_HAND, as it is."""
    items = stack.kube.get(",".join(BY_HAND), "-n", stack.outputs.namespace)["items"]
    return {
        kind: next(item for item in items if item["kind"] == kind and item["metadata"]["name"].startswith(prefix))
        for kind, (prefix, _) in BY_HAND.items()
    }


REMOVED = "cache-server"
"""A Service."""


def test_drift_of_every_kind_is_named_and_repaired_by_the_next_up_and_the_one_after_it_touches_nothing(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    # With GPUs enabled and none there, the RuntimeClass and the DaemonSet exist, and no node is chosen.
    overrides = {**stack.overrides, "gpu": {"enabled": True, "memory": "16Gi"}}
    stack.deployment.deploy(overrides)
    stack.changed = True
    namespace = stack.outputs.namespace
    targets = {kind: item["metadata"]["name"] for kind, item in of_every_kind(stack).items()}
    for kind, name in targets.items():
        stack.kube.run("patch", kind, name, "-n", namespace, "--type=merge", "-p", json.dumps(BY_HAND[kind][1]))
    for kind, item in of_every_kind(stack).items():
        assert holds(BY_HAND[kind][1], item), f"{kind} was not changed"
    stack.kube.run("delete", "service", REMOVED, "-n", namespace)
    capsys.readouterr()
    stack.deployment.deploy(overrides)
    said = capsys.readouterr().err
    assert f"drift: Service/{REMOVED}: removed by hand; making it again" in said, said
    assert stack.kube.get("service", REMOVED, "-n", namespace)
    for kind, item in of_every_kind(stack).items():
        assert f"drift: {kind}/{targets[kind]}: " in said, said
        assert not holds(BY_HAND[kind][1], item), f"{kind} was not set back"
    stack.kube.run("rollout", "status", "deployment/cache-server", "-n", namespace, "--timeout=60s")
    stack.deployment.deploy(overrides)
    # A busy machine may take long enough for signs of life.
    assert [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" goes on")] == []


def resized(stack: Stack, size: str) -> dict[str, Any]:
    return {**stack.overrides, "storage": {"shared": {"provisioner": "modelfleet.dev/shared", "size": size}}}


def server_says(stack: Stack, size: str) -> str:
    patch = json.dumps({"spec": {"resources": {"requests": {"storage": size}}}})
    return stack.kube.refused("patch", "pvc", "shared-models", "-n", stack.outputs.namespace, "-p", patch, "--dry-run=server")


def test_a_claim_that_would_shrink_is_refused_before_anything_changes(stack: Stack) -> None:
    assert "less than status.capacity" in server_says(stack, "1Gi")
    before = stack.deployment.cli.run("stack", "export")
    with pytest.raises(ImpossibleError, match=r"^PersistentVolumeClaim/shared-models: got 1Gi, want at least the 2Gi that it has"):
        stack.deployment.deploy(resized(stack, "1Gi"))
    assert (
        json.loads(stack.deployment.cli.run("stack", "export"))["deployment"]["resources"] == json.loads(before)["deployment"]["resources"]
    )


def test_a_claim_that_cannot_grow_in_its_class_is_refused_before_anything_changes(stack: Stack) -> None:
    def allow(value: bool) -> None:
        stack.kube.run("patch", "storageclass", "shared-models", "-p", json.dumps({"allowVolumeExpansion": value}))

    allow(False)
    try:
        assert "must support resize" in server_says(stack, "3Gi")
        with pytest.raises(ImpossibleError, match=r"^PersistentVolumeClaim/shared-models: got 3Gi after 2Gi in a StorageClass without"):
            stack.deployment.deploy(resized(stack, "3Gi"))
    finally:
        allow(True)
        stack.deployment.configure(stack.overrides)
