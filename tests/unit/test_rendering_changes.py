"""What an update would do, read from two renderings."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.analysis.manifests import report
from infra.analysis.manifests.changes import Change, compare

PROD = [yaml.safe_load(path.read_text()) for path in (Path(__file__).parents[1] / "golden" / "prod").glob("*.yaml")]


def altered(kind: str, name: str, change: Callable[[dict[str, Any]], object]) -> list[Change]:
    after = copy.deepcopy(PROD)
    change(next(item for item in after if (item["kind"], item["metadata"]["name"]) == (kind, name)))
    return compare(PROD, after)


def size(claim: dict[str, Any], value: str) -> None:
    claim["spec"]["resources"]["requests"]["storage"] = value


def without(kind: str) -> list[Change]:
    return compare(PROD, [item for item in PROD if item["kind"] != kind])


def test_equal_renderings_have_no_change() -> None:
    assert compare(PROD, copy.deepcopy(PROD)) == []


@pytest.mark.parametrize(
    ("kind", "name", "change", "action", "path"),
    [
        ("StatefulSet", "ollama", lambda item: item["spec"].update(replicas=2), "changed", "spec.replicas"),
        ("StatefulSet", "ollama", lambda item: item["spec"].update(serviceName="other"), "replaced", "spec.serviceName"),
        ("StatefulSet", "ollama", lambda item: item["spec"].update(podManagementPolicy="OrderedReady"), "replaced", "spec.podManagementPolicy"),
        (
            "StatefulSet",
            "ollama",
            lambda item: item["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"].update(storage="200Gi"),
            "replaced",
            "spec.volumeClaimTemplates",
        ),
        ("Deployment", "api-server", lambda item: item["spec"]["selector"]["matchLabels"].update(a="b"), "replaced", "spec.selector.matchLabels.a"),
        ("Job", "models-writer", lambda item: item["spec"]["template"]["spec"].update(restartPolicy="OnFailure"), "replaced", "spec.template.spec.restartPolicy"),
        ("ConfigMap", "cache-config", lambda item: item["data"].update({"cache.conf": ""}), "replaced", "data.cache.conf"),
        ("Service", "api-server", lambda item: item["spec"].update(clusterIP="None"), "replaced", "spec.clusterIP"),
        ("Service", "api-server", lambda item: item["spec"].update(type="NodePort"), "changed", "spec.type"),
        ("StorageClass", "shared-models", lambda item: item["parameters"].update(share="/x"), "replaced", "parameters.share"),
        ("StorageClass", "shared-models", lambda item: item.update(volumeBindingMode="WaitForFirstConsumer"), "replaced", "volumeBindingMode"),
        ("PriorityClass", "gpu-priority", lambda item: item.update(value=7), "replaced", "value"),
        ("RuntimeClass", "nvidia", lambda item: item.update(handler="nvidia-cdi"), "replaced", "handler"),
        ("PersistentVolumeClaim", "shared-models", lambda item: size(item, "1Gi"), "refused", "spec.resources.requests.storage"),
        ("PersistentVolumeClaim", "shared-models", lambda item: size(item, "2Ti"), "changed", "spec.resources.requests.storage"),
    ],
)  # fmt: skip
def test_a_change_is_named_with_what_it_does(
    kind: str, name: str, change: Callable[[dict[str, Any]], object], action: str, path: str
) -> None:
    (found,) = altered(kind, name, change)
    assert (found.title, found.action, found.loses_data) == (f"{kind}/{name}", action, "")
    assert [each.path for each in found.differences] == [path]


def test_containers_and_variables_are_compared_by_name() -> None:
    def insert(item: dict[str, Any]) -> None:
        item["spec"]["template"]["spec"]["containers"][0]["env"].insert(0, {"name": "NEW", "value": "1"})

    (found,) = altered("StatefulSet", "ollama", insert)
    assert [(each.path, each.old) for each in found.differences] == [("spec.template.spec.containers[ollama].env[NEW]", None)]


@pytest.mark.parametrize(
    ("kind", "name", "change", "why"),
    [
        ("PersistentVolumeClaim", "shared-models", lambda item: item["spec"].update(storageClassName="x"), "what it holds goes with it"),
        ("PersistentVolumeClaim", "shared-models", lambda item: item["metadata"].pop("annotations"), "no longer says true"),
        ("StorageClass", "local-nvme", lambda item: item.update(reclaimPolicy="Delete"), "reclaimPolicy no longer says Retain"),
        ("Namespace", "modelfleet", lambda item: item["metadata"]["labels"].update({"modelfleet.dev/data": "disposable"}), "no longer says retain"),
        (
            "StatefulSet",
            "ollama",
            lambda item: item["spec"]["persistentVolumeClaimRetentionPolicy"].update(whenDeleted="Delete"),
            "whenDeleted no longer says Retain",
        ),
    ],
)  # fmt: skip
def test_what_may_lose_data_says_why(kind: str, name: str, change: Callable[[dict[str, Any]], object], why: str) -> None:
    (found,) = altered(kind, name, change)
    assert why in found.loses_data


@pytest.mark.parametrize(
    ("kind", "loses"),
    [("PersistentVolumeClaim", True), ("Namespace", True), ("StatefulSet", False), ("StorageClass", False), ("ConfigMap", False)],
)
def test_deleting_loses_what_nothing_retains(kind: str, loses: bool) -> None:
    assert {bool(change.loses_data) for change in without(kind)} == {loses}
    assert {change.action for change in without(kind)} == {"deleted"}


def test_a_stateful_set_that_deletes_its_claims_loses_them_when_it_is_replaced() -> None:
    before = copy.deepcopy([item for item in PROD if item["kind"] == "StatefulSet"])
    before[0]["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] = "Delete"
    after = copy.deepcopy(before)
    after[0]["spec"]["serviceName"] = "other"
    assert [change.loses_data for change in compare(before, after)] == ["its claims go with it"]


def test_the_worst_comes_first_and_a_renamed_object_is_deleted_and_created() -> None:
    after = copy.deepcopy(PROD)
    for item in after:
        if item["kind"] == "PersistentVolumeClaim" or item["metadata"]["name"] == "gpu-priority":
            item["metadata"]["name"] = "renamed"
        if item["kind"] == "StatefulSet" and item["metadata"]["name"] == "ollama":
            item["spec"]["serviceName"] = "other"
        if item["kind"] == "PodDisruptionBudget":
            item["spec"]["maxUnavailable"] = 2
    found = compare(PROD, after)
    assert [change.action for change in found] == ["deleted", "deleted", "replaced", "changed", "changed", "changed", "created", "created"]
    assert [change.title for change in found][:3] == [
        "PersistentVolumeClaim/shared-models",
        "PriorityClass/gpu-priority",
        "StatefulSet/ollama",
    ]


def test_the_report_puts_data_loss_in_bold_and_the_rest_not() -> None:
    text = report.changes([*without("PersistentVolumeClaim"), *without("StatefulSet")], "`main`")
    assert text.startswith("Against `main`: 3 deleted.\n")
    assert "| **PersistentVolumeClaim/shared-models** | **deleted: data may be lost, what it holds goes with it; it is protected" in text
    assert "| StatefulSet/ollama | deleted |" in text


def test_the_report_shows_old_and_new_in_one_table_row() -> None:
    text = report.changes(altered("ConfigMap", "cache-config", lambda item: item["data"].update({"cache.conf": "a|b\nc `d`"})), "`main`")
    row = text.splitlines()[-1]
    assert "→ `a\\|b c 'd'`" in row
    assert row.count("|") - row.count("\\|") == 4


def test_no_change_is_said() -> None:
    assert report.changes([], "`main`") == "No object changes against `main`.\n"
