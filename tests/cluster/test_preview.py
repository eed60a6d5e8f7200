"""What a preview says without a cluster, asked of a real API server of the same version: one of its own, with nothing in it."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import cluster as embedded
from devcluster import controlplane, layout
from infra import ROOT
from infra.analysis import preview
from infra.analysis.manifests import schema, schema_source
from infra.analysis.manifests.changes import IMMUTABLE, REPLACED
from tests.cluster.conftest import NAME, Stack
from tests.cluster.kube import Kube

pytestmark = pytest.mark.cluster
GOLDEN = Path(__file__).parents[1] / "golden"
CLUSTER_WIDE = ("Namespace", "PriorityClass", "RuntimeClass", "StorageClass")
ADMITTING = (*CLUSTER_WIDE, "LimitRange", "ResourceQuota", "ServiceAccount")
"""What the admission of a pod looks at; it has to be there for a dry run of the pods."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[layout.Cluster]:
    name = f"{NAME}-preview"
    try:
        yield embedded.up(name, 1)
    finally:
        left = layout.load(name)
        if left is not None:
            embedded.down(left)


@pytest.fixture(scope="module")
def empty(cluster: layout.Cluster) -> Kube:
    return Kube(Path(embedded.binaries()) / "kubectl", cluster.kubeconfig)


def documents(stack: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted((GOLDEN / stack).glob("*.yaml"))]


def apply(kube: Kube, objects: list[dict[str, Any]], *options: str) -> list[str]:
    """The line of each object; fails on a warning, an error or an unknown field."""
    argv = ("apply", "--server-side", "--validate=strict", "--warnings-as-errors", *options, "-f", "-")
    # Servers from 1.34 on take the old name too, with a warning.
    text = yaml.safe_dump_all(objects).replace("trafficDistribution: PreferClose", "trafficDistribution: PreferSameZone")
    return kube.run(*argv, stdin=text).splitlines()


@pytest.fixture(scope="module", params=preview.STACKS)
def applied(request: pytest.FixtureRequest, empty: Kube) -> Iterator[tuple[str, Kube]]:
    """A stack whose namespace, quota and classes exist, and nothing else of it."""
    objects = [item for item in documents(request.param) if item["kind"] in ADMITTING]
    order = sorted(objects, key=lambda item: item["kind"] != "Namespace")
    apply(empty, order)
    yield request.param, empty
    empty.run("delete", "-f", "-", stdin=yaml.safe_dump_all(order[::-1]))


def test_the_stored_schemas_are_those_of_the_server(cluster: layout.Cluster) -> None:
    with controlplane.client(cluster) as api:
        found = schema_source.dump(schema_source.generate(lambda path: api.get(f"/openapi/v3/{path}").raise_for_status().json()))
    assert found == schema.SCHEMAS.read_text(), "make up, then python -m infra.analysis.manifests.schema_source"


def test_the_server_would_take_every_object(applied: tuple[str, Kube]) -> None:
    name, kube = applied
    objects = documents(name)
    lines = apply(kube, objects, "--dry-run=server")
    assert len(lines) == len(objects)
    assert all(line.endswith("serverside-applied (server dry run)") for line in lines)


def test_every_pod_is_admitted_under_the_standard_the_quota_and_the_classes(applied: tuple[str, Kube]) -> None:
    name, kube = applied
    pods: list[dict[str, Any]] = []
    for item in documents(name):
        if "template" not in item.get("spec", {}):
            continue
        template = copy.deepcopy(item["spec"]["template"])
        # The controller adds these.
        claims = [each["metadata"]["name"] for each in item["spec"].get("volumeClaimTemplates", [])]
        template["spec"].setdefault("volumes", []).extend(
            {"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims
        )
        metadata = {**template["metadata"], "name": f"{item['metadata']['name']}-0", "namespace": "modelfleet"}
        pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    assert len(apply(kube, pods, "--dry-run=server")) == len(pods) >= 6


CHANGES: dict[str, dict[str, Callable[[dict[str, Any]], object]]] = {
    "PriorityClass": {
        "value": lambda item: item.update(value=item["value"] + 1),
        "preemptionPolicy": lambda item: item.update(
            preemptionPolicy="PreemptLowerPriority" if item.get("preemptionPolicy") == "Never" else "Never"
        ),
    },
    "RuntimeClass": {"handler": lambda item: item.update(handler="other")},
    "StorageClass": {
        "reclaimPolicy": lambda item: item.update(reclaimPolicy="Recycle"),
        "volumeBindingMode": lambda item: item.update(
            volumeBindingMode={"Immediate": "WaitForFirstConsumer"}.get(item["volumeBindingMode"], "Immediate")
        ),
    },
}


def test_what_components_replace_an_object_for_cannot_change_in_place(applied: tuple[str, Kube]) -> None:
    name, kube = applied
    assert {kind: tuple(changes) for kind, changes in CHANGES.items()} == dict(IMMUTABLE)
    for item in documents(name):
        for path, change in CHANGES.get(item["kind"], {}).items():
            changed = copy.deepcopy(item)
            change(changed)
            with pytest.raises(AssertionError) as refusal:
                apply(kube, [changed], "--dry-run=server")
            said = str(refusal.value)
            assert "immutable" in said or "forbidden" in said.lower(), f"{item['kind']} {path}: {said}"


def test_a_stateful_set_refuses_in_place_what_the_report_calls_replaced(applied: tuple[str, Kube]) -> None:
    """The server names the fields that it lets change; none of ours for a replacement is among them, but one that Pulumi adds."""
    name, kube = applied
    item = next(item for item in documents(name) if item["kind"] == "StatefulSet")
    still = {**item, "spec": {**item["spec"], "replicas": 0}}
    apply(kube, [still])
    try:
        changed = {**still, "spec": {**still["spec"], "serviceName": "other"}}
        with pytest.raises(AssertionError) as refusal:
            apply(kube, [changed], "--dry-run=server")
    finally:
        kube.run("delete", "statefulset", item["metadata"]["name"], "-n", "modelfleet")
    mutable = str(refusal.value).partition("for fields other than")[2]
    assert "'template'" in mutable
    fields = {path.removeprefix("spec.") for path in REPLACED["StatefulSet"]}
    assert {field for field in fields if f"'{field}'" in mutable} == {"revisionHistoryLimit"}


def test_the_dry_run_finds_what_is_wrong(applied: tuple[str, Kube]) -> None:
    name, kube = applied
    item = next(item for item in documents(name) if item["kind"] == "Service" and item["metadata"]["name"] == "api-server")
    wrong = json.loads(json.dumps(item))
    wrong["spec"]["ports"][0]["port"] = 70000
    assert schema.problems(wrong) == [], "the schema has no bounds: this is what the dry run is for"
    with pytest.raises(AssertionError) as refusal:
        apply(kube, [wrong], "--dry-run=server")
    assert "spec.ports[0].port" in str(refusal.value)


def test_the_policy_pack_passes_the_running_stack_with_what_the_server_added(stack: Stack) -> None:
    plan = stack.deployment.cli.preview(policy_packs=[str(ROOT / "infra" / "analysis" / "policy")])
    assert plan.policy_packs == {"modelfleet": "1.0.0"}
