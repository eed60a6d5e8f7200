"""Which changes lose data, what drifted, and what a killed update leaves."""

import json
from typing import Any

import pytest
from pulumi.automation.events import StepEventMetadata

from infra.engine import interrupted
from infra.engine.changes import DataLossError, ImpossibleError, Plan, read, refuse_data_loss, refuse_the_impossible
from infra.engine.operation import Told

URN = "urn:pulumi:dev::modelfleet::modelfleet:index:Storage${}::{}"
CLAIM = URN.format("kubernetes:core/v1:PersistentVolumeClaim", "storage-claim")


def step(op: str, urn: str = CLAIM, *, reasons: list[str] | None = None, **old: Any) -> dict[str, Any]:
    state = {"inputs": {"metadata": {"name": "shared-models"}}, **old}
    return {"op": op, "urn": urn, "old": state, "keys": reasons}


def plan(*steps: dict[str, Any]) -> Plan:
    """What is read from these steps of a preview, given as the engine's events have them."""
    return read(Told(steps=[StepEventMetadata.from_json(each) for each in steps]))


def refusal(*planned: dict[str, Any], allowed: tuple[str, ...] = ()) -> str:
    with pytest.raises(DataLossError) as error:
        refuse_data_loss(plan(*planned), allowed)
    return str(error.value)


@pytest.mark.parametrize("op", ["delete", "replace", "delete-replaced"])
def test_a_claim_that_would_go_is_refused_with_the_way_out(op: str) -> None:
    assert refusal(step(op, reasons=["spec.accessModes"])) == (
        "PersistentVolumeClaim/shared-models: got a change that deletes it and the models on its volume "
        "(spec.accessModes cannot change in place), want it kept; "
        "undo the change, or copy what you need and run make up ALLOW_DATA_LOSS=PersistentVolumeClaim/shared-models"
    )


@pytest.mark.parametrize(
    "planned", [step("same"), step("update"), step("replace", retainOnDelete=True)], ids=["same", "update", "retained"]
)
def test_a_claim_that_stays_is_no_loss(planned: dict[str, Any]) -> None:
    refuse_data_loss(plan(planned), ())


def test_only_the_named_object_may_go() -> None:
    namespace = step("replace", URN.format("kubernetes:core/v1:Namespace", "governance-namespace"))
    assert refusal(step("replace"), namespace, allowed=("PersistentVolumeClaim/shared-models",)).startswith("Namespace/shared-models: got")


def test_a_namespace_without_data_may_go() -> None:
    namespace = step(
        "delete",
        URN.format("kubernetes:core/v1:Namespace", "image-trust-namespace"),
        inputs={"metadata": {"name": "modelfleet-admission", "labels": {"modelfleet.dev/data": "none"}}},
    )
    refuse_data_loss(plan(namespace), ())


def test_a_stateful_set_is_no_loss_while_its_claims_stay() -> None:
    urn = URN.format("kubernetes:apps/v1:StatefulSet", "ollama-servers")
    spec = {"volumeClaimTemplates": [{}], "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain"}}
    kept = step("replace", urn, inputs={"metadata": {"name": "ollama"}, "spec": spec})
    refuse_data_loss(plan(kept), ())
    spec["persistentVolumeClaimRetentionPolicy"] = {"whenDeleted": "Delete"}
    assert refusal(kept).startswith("StatefulSet/ollama: got")


def test_a_model_server_that_nobody_wants_any_more_takes_its_copy_with_it() -> None:
    urn = URN.format("kubernetes:apps/v1:StatefulSet", "model-server-coder-servers")
    spec = {"volumeClaimTemplates": [{}], "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}
    inputs = {"metadata": {"name": "model-server-coder"}, "spec": spec}
    refuse_data_loss(plan(step("delete", urn, inputs=inputs)), ())
    assert refusal(step("replace", urn, inputs=inputs)).startswith("StatefulSet/model-server-coder: got")


def resized(have: str, want: str, *others: dict[str, Any], allowed: tuple[str, ...] = ()) -> None:
    def claim(size: str) -> dict[str, Any]:
        return {"metadata": {"name": "c"}, "spec": {"storageClassName": "models", "resources": {"requests": {"storage": size}}}}

    update = {"op": "update", "urn": CLAIM, "old": {"inputs": claim(have)}, "new": {"inputs": claim(want)}}
    refuse_the_impossible(plan(update, *others), allowed)


def storage_class(name: str, **fields: Any) -> dict[str, Any]:
    urn = URN.format("kubernetes:storage.k8s.io/v1:StorageClass", "storage-class")
    return {"op": "update", "urn": urn, "old": {"inputs": {"metadata": {"name": name}, **fields}}}


@pytest.mark.parametrize("want", ["2Gi", "3Gi", "2048Mi"])
def test_a_claim_may_stay_or_grow(want: str) -> None:
    resized("2Gi", want, storage_class("models", allowVolumeExpansion=True), storage_class("other"))


def test_a_claim_that_would_shrink_is_refused() -> None:
    with pytest.raises(ImpossibleError) as error:
        resized("2Gi", "2000Mi")
    assert str(error.value) == (
        "PersistentVolumeClaim/c: got 2000Mi, want at least the 2Gi that it has: no claim shrinks; set its size back"
    )


@pytest.mark.parametrize("fields", [{}, {"allowVolumeExpansion": False}])
def test_a_claim_that_would_grow_in_a_class_without_expansion_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(
        ImpossibleError, match=r"^PersistentVolumeClaim/c: got 3Gi after 2Gi in a StorageClass without allowVolumeExpansion"
    ):
        resized("2Gi", "3Gi", storage_class("models", **fields))


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_kept_claims_of_a_stateful_set_do_not_change_with_it(policy: str) -> None:
    spec = {"volumeClaimTemplates": [{}], "persistentVolumeClaimRetentionPolicy": {"whenDeleted": policy}}
    urn = URN.format("kubernetes:apps/v1:StatefulSet", "ollama-servers")
    reason = "spec.volumeClaimTemplates[0].spec.resources.requests.storage"
    found = plan(step("replace", urn, reasons=[reason], inputs={"metadata": {"name": "ollama"}, "spec": spec}))
    if policy == "Delete":
        refuse_the_impossible(found, ())
        return
    with pytest.raises(ImpossibleError, match=r"^StatefulSet/ollama: got other volumeClaimTemplates.*ALLOW_DATA_LOSS=StatefulSet/ollama"):
        refuse_the_impossible(found, ())
    refuse_the_impossible(found, ["StatefulSet/ollama"])


def pending(kind: str, resource: dict[str, Any], resources: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"version": 3, "deployment": {"resources": resources or [], "pending_operations": [{"type": kind, "resource": resource}]}}


SECRET = {
    "urn": URN.format("kubernetes:core/v1:Secret", "keys"),
    "type": "kubernetes:core/v1:Secret",
    "inputs": {"apiVersion": "v1", "metadata": {"name": "keys-1a2b3c4d", "namespace": "modelfleet"}},
}


def test_an_object_that_was_being_created_is_taken_for_created_under_its_name() -> None:
    document = pending("creating", dict(SECRET))
    assert interrupted.has_pending(json.dumps(document))
    adopted = interrupted.adopt(json.dumps(document))
    assert not interrupted.has_pending(adopted)
    (resource,) = json.loads(adopted)["deployment"]["resources"]
    assert resource["id"] == "modelfleet/keys-1a2b3c4d"
    assert resource["outputs"]["__inputs"] == SECRET["inputs"]


def test_the_object_that_it_was_to_replace_goes_afterwards() -> None:
    old = dict(SECRET, id="modelfleet/keys-00000000")
    resources = json.loads(interrupted.adopt(json.dumps(pending("creating", dict(SECRET), [old]))))["deployment"]["resources"]
    assert [(each["id"], each.get("delete", False)) for each in resources] == [
        ("modelfleet/keys-00000000", True),
        ("modelfleet/keys-1a2b3c4d", False),
    ]


@pytest.mark.parametrize("kind", ["updating", "deleting", "reading"])
def test_other_operations_are_cleared(kind: str) -> None:
    document = json.loads(interrupted.adopt(json.dumps(pending(kind, dict(SECRET)))))
    assert document["deployment"] == {"resources": []}


def test_a_checkpoint_without_pending_operations_is_left_alone() -> None:
    assert not interrupted.has_pending(json.dumps({"version": 3, "checkpoint": {"latest": {"resources": []}}}))
    assert not interrupted.has_pending(json.dumps({"version": 3, "checkpoint": {}}))


def refreshed(op: str, wanted: dict[str, Any]) -> Plan:
    recorded = {"metadata": {"name": "shared-models"}, "spec": {"a": 1}}
    return plan(
        {"op": "refresh", "urn": CLAIM, "old": {"inputs": recorded}},
        {"op": op, "urn": CLAIM, "new": {"inputs": wanted}, "detailedDiff": {"spec.a": {"diffKind": "update"}}},
    )


def test_what_the_program_still_wants_and_must_change_was_changed_by_hand() -> None:
    wanted = {"metadata": {"name": "shared-models"}, "spec": {"a": 1}}
    object_ = "PersistentVolumeClaim/shared-models"
    assert refreshed("update", wanted).drift() == [f"{object_}: spec.a changed by hand; setting it back"]
    assert refreshed("create", wanted).drift() == [f"{object_}: removed by hand; making it again"]
    assert refreshed("same", wanted).drift() == []


def test_what_the_program_wants_anew_is_no_drift() -> None:
    assert refreshed("update", {"metadata": {"name": "shared-models"}, "spec": {"a": 2}}).drift() == []


SERVER = URN.format("kubernetes:apps/v1:Deployment", "model-server-servers")


@pytest.mark.parametrize(
    ("live", "detailed", "named"),
    [
        ({"spec": {"replicas": 2}}, {"spec.replicas": {"diffKind": "update"}}, "spec.replicas"),
        ({"spec": {"replicas": 2, "paused": False}}, None, "spec.replicas"),
        ({"spec": {"replicas": 1}}, None, "metadata.managedFields"),
    ],
)
def test_a_drift_line_always_names_the_field(live: dict[str, Any], detailed: dict[str, Any] | None, named: str) -> None:
    wanted = {"metadata": {"name": "model-server"}, "spec": {"replicas": 1}}
    refreshed = {"op": "refresh", "urn": SERVER, "old": {"inputs": wanted}}
    old = {"inputs": {**wanted, **live}}
    update = {"op": "update", "urn": SERVER, "old": old, "new": {"inputs": wanted}, "detailedDiff": detailed}
    assert plan(refreshed, update).drift() == [f"Deployment/model-server: {named} changed by hand; setting it back"]


def test_a_field_that_differs_below_a_list_is_named_by_its_place() -> None:
    def inputs(image: str) -> dict[str, Any]:
        return {"metadata": {"name": "model-server"}, "spec": {"containers": [{"name": "a"}, {"name": "b", "image": image}]}}

    refreshed = {"op": "refresh", "urn": SERVER, "old": {"inputs": inputs("x")}}
    update = {"op": "update", "urn": SERVER, "old": {"inputs": inputs("y")}, "new": {"inputs": inputs("x")}}
    (line,) = plan(refreshed, update).drift()
    assert line == "Deployment/model-server: spec.containers[1].image changed by hand; setting it back"
