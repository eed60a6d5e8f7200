"""What the namespace's limits do on a real API server: counted, defaulted, refused. No GPU is needed to ask for one."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

import components as c
from components import gpu
from tests.cluster.conftest import Stack
from tests.cluster.kube import Kube, eventually
from tests.component.harness import Recorder, render

pytestmark = pytest.mark.cluster
ARGS = c.GovernanceArgs(
    namespace="governed",
    gpu_quota=3,
    gpu_resource="nvidia.com/gpu",
    gpu_reserved=2,
    gpus_per_container=1,
    cpu="4",
    memory="4Gi",
    pods=50,
    retain=False,
)


def manifests(recorder: Recorder) -> list[dict[str, Any]]:
    """What a component would create, as kubectl takes it; components' own entries have no kind."""
    found = [resource.inputs for resource in recorder.resources if "kind" in resource.inputs]
    for item in found:
        item["metadata"].setdefault("name", "unnamed")
    return found


@pytest.fixture(scope="module")
def namespaces(kube: Kube) -> Iterator[list[str]]:
    """Those of this file's tests. They go together, which takes as long as one of them."""
    made: list[str] = []
    yield made
    kube.run("delete", "namespace", *made, "--ignore-not-found", "--wait=true")


@pytest.fixture
def namespace(namespaces: list[str]) -> str:
    namespaces.append(f"{ARGS.namespace}-{len(namespaces)}")
    return namespaces[-1]


@pytest.fixture
def apply(kube: Kube, namespace: str) -> Callable[..., None]:
    """Creates Governance with changed arguments, in the test's namespace."""

    def create(**changes: Any) -> None:
        recorder = render(lambda: c.Governance("governance", dataclasses.replace(ARGS, namespace=namespace, **changes)))
        items = manifests(recorder)
        for index, item in enumerate(items):
            if item["metadata"]["name"] == "unnamed":
                item["metadata"]["name"] = f"governance-{index}"
        kube.run("apply", "-f", "-", stdin=yaml.safe_dump_all(items))
        # Quota admission begins when the controller has counted what is there.
        quotas = lambda: kube.get("resourcequotas", "-n", namespace)["items"]  # noqa: E731
        eventually(quotas, lambda found: bool(found) and all("used" in each.get("status", {}) for each in found), 60, "counted quotas")

    return create


def pod(namespace: str, name: str, gpus: int | None = None, priority: str | None = None) -> dict[str, Any]:
    """A restricted pod that no node can run: it is about admission."""
    limits = {} if gpus is None else {"limits": {"nvidia.com/gpu": gpus}}
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeSelector": {"no-such": "node"},
            **({"priorityClassName": priority} if priority else {}),
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "main", "image": "none.example/none", "resources": limits, "securityContext": security}],
        },
    }


def admitted(kube: Kube, manifest: dict[str, Any]) -> dict[str, Any]:
    """The object as the API server keeps it."""
    return yaml.safe_load(kube.run("create", "-f", "-", "-o", "yaml", stdin=yaml.safe_dump(manifest)))


def refused(kube: Kube, manifest: dict[str, Any]) -> str:
    with pytest.raises(AssertionError) as error:
        admitted(kube, manifest)
    return str(error.value)


def used(kube: Kube, namespace: str, resource: str) -> set[str]:
    return {
        item["status"]["used"][resource]
        for item in kube.get("resourcequotas", "-n", namespace)["items"]
        if resource in item["status"]["used"]
    }


def test_a_container_that_names_no_gpu_gets_none_and_one_that_wants_too_many_is_refused(
    kube: Kube, namespace: str, apply: Callable[..., None]
) -> None:
    apply()
    resources = admitted(kube, pod(namespace, "plain"))["spec"]["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "0"
    assert resources["requests"]["ephemeral-storage"] == "64Mi"
    assert "maximum nvidia.com/gpu usage per Container is 1, but limit is 2" in refused(kube, pod(namespace, "greedy", 2))


def test_a_maximum_without_a_default_would_give_a_gpu_to_every_container(kube: Kube, namespace: str, apply: Callable[..., None]) -> None:
    """Why our LimitRange says `default: 0`."""
    apply(gpus_per_container=0)
    limit = {"limits": [{"type": "Container", "max": {"nvidia.com/gpu": "1"}}]}
    trap = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "trap", "namespace": namespace}, "spec": limit}
    kube.run("apply", "-f", "-", stdin=yaml.safe_dump(trap))
    assert admitted(kube, pod(namespace, "plain"))["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_batch_work_may_not_take_the_gpus_of_serving(stack: Stack, kube: Kube, namespace: str, apply: Callable[..., None]) -> None:
    """The classes are those of the deployed stack: they are the whole cluster's."""
    apply()
    admitted(kube, pod(namespace, "batch-0", 1, gpu.BATCH_PRIORITY))
    assert "exceeded quota: governance" in refused(kube, pod(namespace, "batch-1", 1, gpu.BATCH_PRIORITY))
    admitted(kube, pod(namespace, "serving-0", 1, gpu.PRIORITY_CLASS))
    admitted(kube, pod(namespace, "serving-1", 1, gpu.PRIORITY_CLASS))
    assert "exceeded quota: governance" in refused(kube, pod(namespace, "serving-2", 1, gpu.PRIORITY_CLASS))
    assert used(kube, namespace, "requests.nvidia.com/gpu") == {"3", "1"}


@pytest.mark.parametrize(("profile", "device_class"), [(None, "gpu.nvidia.com"), ("1g.10gb", "mig.nvidia.com")])
def test_a_claim_template_is_valid_and_its_devices_are_counted(
    kube: Kube, namespace: str, apply: Callable[..., None], profile: str | None, device_class: str
) -> None:
    apply(gpu_device_class=device_class)
    args = c.ClaimArgs(namespace=namespace, count=2, mig_profile=profile)
    runtime = c.GpuRuntimeArgs(enabled=False, create_runtime_class=False, runtime_class="x", handler="x", priority=1_000_000, claim=args)
    template = render(lambda: c.GpuRuntime("gpu", runtime)).one("ResourceClaimTemplate")
    kept = admitted(kube, template)
    assert kept["spec"]["spec"] == template["spec"]["spec"]

    def claim(name: str) -> dict[str, Any]:
        return {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": gpu.claim(2, profile),
        }

    admitted(kube, claim("first"))
    assert "exceeded quota" in refused(kube, claim("second"))
    # Nobody gets at GPUs past the claims.
    assert "exceeded quota" in refused(kube, pod(namespace, "past-the-claims", 1))
