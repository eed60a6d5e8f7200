"""What is there before any pod of the whole stack, and what is there before the pods that need more."""

import json
from graphlib import TopologicalSorter
from typing import Any

import pulumi.runtime
import pytest
from pulumi.runtime import Mocks
from pulumi.runtime.mocks import MockMonitor

from infra.program import stack
from infra.program.settings import parse
from infra.program.settings.images import VERIFIER_IMAGE
from tests.component import harness
from tests.component.test_registry_auth import AUTH, CERTIFICATE, WORKLOADS
from tests.unit.test_settings import REFS, document
from tests.unit.test_settings_fuzz import GOOD, with_config

GROUND = ("Namespace", "NetworkPolicy", "ResourceQuota", "LimitRange", "Secret", "PriorityClass", "ValidatingWebhookConfiguration")


class Monitor(MockMonitor):
    """Also keeps what each registration waits for: its dependencies and its parent."""

    def __init__(self, mocks: Mocks) -> None:
        super().__init__(mocks)
        self.awaited: dict[str, set[str]] = {}

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 (Pulumi's name)
        response = super().RegisterResource(request)
        self.awaited[response.urn] = {*request.dependencies, request.parent} - {""}
        return response


@pytest.fixture(scope="module")
def before() -> dict[str, set[str]]:
    """Each object, as `Kind/logical name`, to all that are there before it, in a stack with everything that a stack can have."""
    trust: dict[str, Any] = {"publicKeys": "-----BEGIN PUBLIC KEY-----", "caBundle": CERTIFICATE}
    config = document("prod") | {"images": {"refs": {**REFS, VERIFIER_IMAGE: REFS["ollama"]}, "trust": trust}}
    config["fleet"]["scaleToZero"] = {"kubernetesCidrs": ["10.0.0.1/32"]}
    config["monitoring"] |= {"prometheus": {"resources": {"cpu": "100m", "memory": "512Mi"}}}
    secrets = GOOD | {"verifierTls": json.dumps({"certificate": "c", "privateKey": "k"}), "registryAuth": AUTH}
    monitors: list[Monitor] = []

    def set_mocks(mocks: Mocks, **options: Any) -> None:
        monitors.append(Monitor(mocks))
        pulumi.runtime.set_mocks(mocks, **options, monitor=monitors[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "set_mocks", set_mocks)
        with_config(
            {**{name: json.dumps(value) for name, value in config.items()}, **secrets},
            lambda: harness.render(lambda: stack.build(parse(harness.rendered(config)))),
            tuple(secrets),
        )
    awaited = monitors[0].awaited
    order = tuple(TopologicalSorter(awaited).static_order())
    everything: dict[str, set[str]] = {}
    for urn in order:
        direct = awaited.get(urn, set())
        everything[urn] = direct.union(*(everything[each] for each in direct))
    return {title(urn): {title(each) for each in found} for urn, found in everything.items()}


def title(urn: str) -> str:
    kind, name = urn.split("::")[-2:]
    return f"{kind.rpartition(':')[2]}/{name}"


def test_every_pod_comes_after_quotas_policies_classes_logins_and_the_webhook(before: dict[str, set[str]]) -> None:
    own = ("governance-", "network-", "gpu-", "image-trust-")
    ground = {each for each in before if each.startswith(GROUND) and each.partition("/")[2].startswith(own)}
    assert {each.partition("/")[0] for each in ground} == set(GROUND)
    pods = [each for each in before if each.partition("/")[0] in WORKLOADS and not each.endswith("/image-trust-servers")]
    assert len(pods) >= 8
    for pod in pods:
        assert ground - before[pod] == set(), pod


def test_readers_come_after_the_store_and_its_writer(before: dict[str, set[str]]) -> None:
    needed = {"StorageClass/storage-hot", "StorageClass/storage-shared", "PersistentVolumeClaim/storage-claim", "Job/models-writer"}
    for reader in ("StatefulSet/ollama-servers", "StatefulSet/model-server-servers", "Job/models-cleaner"):
        assert needed - before[reader] == set(), reader


def test_the_cleaner_and_the_api_server_come_after_all_servers_of_models(before: dict[str, set[str]]) -> None:
    servers = {"StatefulSet/ollama-servers", "StatefulSet/model-server-servers"}
    assert servers <= before["Deployment/api-server-servers"]
    assert servers <= before["Job/models-cleaner"]


def test_classes_of_storage_wait_for_no_webhook(before: dict[str, set[str]]) -> None:
    assert [each for each in before["StorageClass/storage-hot"] if "image-trust" in each] == []
