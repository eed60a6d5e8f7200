"""The pack's treatment of what the engine hands it: unknown values, options, and which resource a line is about."""

from typing import Any

import pytest
from pulumi_policy import PolicyCustomTimeouts, PolicyResource, PolicyResourceOptions, StackValidationArgs
from pulumi_policy.proxy import UNKNOWN_OBJECT_VALUE, UNKNOWN_STRING_VALUE, unknown_checking_proxy

from infra.analysis.policy import pack, rules

PINNED = "x@sha256:" + "a" * 64


def resource(item: dict[str, Any], *, protect: bool = False) -> PolicyResource:
    opts = PolicyResourceOptions(protect, [], None, [], PolicyCustomTimeouts(0, 0, 0), [])
    name = item["metadata"]["name"]
    return PolicyResource(f"kubernetes:v1:{item['kind']}", unknown_checking_proxy(item), f"urn:{name}", name, opts, None, None, [], {})


def deployment(name: str, image: str, **spec: Any) -> dict[str, Any]:
    pod = {"containers": [{"name": "main", "image": image}], **spec}
    return {"kind": "Deployment", "metadata": {"name": name, "namespace": "n"}, "spec": {"template": {"spec": pod}}}


def run(*resources: PolicyResource) -> dict[str, list[tuple[str, str | None]]]:
    """Policy name to what it reports."""
    found: dict[str, list[tuple[str, str | None]]] = {}
    for policy in pack.policies():

        def report(line: str, urn: str | None = None, name: str = policy.name) -> None:
            found.setdefault(name, []).append((line, urn))

        policy.validate(StackValidationArgs(list(resources)), report)  # type: ignore[attr-defined]
    return found


def test_a_violation_is_reported_on_its_resource() -> None:
    found = run(resource(deployment("d", "x:latest")))
    assert found["images-cannot-move"] == [("Deployment/d: got image x:latest, want one by digest; set images.refs", "urn:d")]
    assert "undecided" not in found


def test_an_image_that_is_not_built_yet_is_undecided_and_everything_else_is_judged() -> None:
    found = run(resource(deployment("d", UNKNOWN_STRING_VALUE, hostNetwork=True)))
    assert "images-cannot-move" not in found
    assert found["pods-stay-off-the-host"]
    assert [line.partition(":")[0] for line, _ in found["undecided"]] == ["images_cannot_move", "Deployment/d"]


def test_a_known_violation_beside_an_unknown_value_is_still_shown() -> None:
    found = run(resource(deployment("built", UNKNOWN_STRING_VALUE)), resource(deployment("old", "x:latest")))
    assert ("Deployment/old: got image x:latest, want one by digest; set images.refs", "urn:old") in found["undecided"]


def test_a_reference_that_is_not_known_yet_is_no_false_alarm() -> None:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": UNKNOWN_STRING_VALUE}}]
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "p", "namespace": "n"}, "spec": {}}
    found = run(resource(deployment("d", PINNED, volumes=volumes)), resource(claim, protect=True))
    assert "claims-are-used" not in found
    assert any(line.startswith("claims_are_used: ") for line, _ in found["undecided"])


def test_an_unknown_object_breaks_no_rule() -> None:
    item = deployment("d", PINNED)
    item["spec"]["template"] = UNKNOWN_OBJECT_VALUE
    assert run(resource(item))["undecided"]


@pytest.mark.parametrize(("protect", "annotated"), [(True, "false"), (False, "true")])
def test_protection_is_the_engines_option_and_not_what_the_object_says(protect: bool, annotated: str) -> None:
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "p", "annotations": {"modelfleet.dev/protected": annotated}}}
    assert ("claims-are-protected" in run(resource(claim, protect=protect))) is not protect


def test_resources_of_other_providers_are_left_alone() -> None:
    other = resource(deployment("d", "x:latest"))
    other.resource_type = "docker-build:index:Image"
    assert run(other) == {}


def test_every_rule_is_a_mandatory_policy() -> None:
    names = [policy.name for policy in pack.policies() if policy.enforcement_level and policy.enforcement_level.value == "mandatory"]
    assert names == [rule.__name__.replace("_", "-") for rule in rules.RULES]
