"""What a change of the models in the image `models` replaces in the whole stack."""

import json
from typing import Any

from images import embedded
from infra.analysis.policy import rules
from infra.preparation.certificates import verifier_tls
from infra.program import stack
from infra.program.settings import parse
from tests.component.harness import render, rendered
from tests.unit.test_settings import REFS, document
from tests.unit.test_settings_fuzz import GOOD, with_config


def build(seed: str, *names: str) -> dict[str, Any]:
    """Command of each Job, and `fleet`, to its spec: of the dev stack with these models and this digest of the image that carries them."""
    config = document("dev")
    config["images"] = {"refs": {**REFS, "models": f"modelfleet/models@sha256:{seed * 64}"}}
    config["models"] += [{"name": name, "size": "10M", "kvBytesPerToken": 1024} for name in names]
    found: dict[str, Any] = {}

    def register() -> None:
        recorder = render(lambda: stack.build(parse(rendered(config))))
        found.update({job["spec"]["template"]["spec"]["containers"][0]["args"][0]: job["spec"] for job in recorder.kind("Job")})
        found["fleet"] = recorder.named("StatefulSet", "ollama")["spec"]

    with_config(dict(GOOD), register, tuple(GOOD))
    return found


def test_private_sources_keep_to_the_rules_of_the_stack() -> None:
    config = document("prod") | {"images": {"refs": REFS}}
    config["delivery"] = {"caBundle": json.loads(verifier_tls("ns"))["certificate"]}
    tokens = {"sourceTokens": json.dumps({"models.example.com": "hunter2-that-nobody-may-see"})}
    found: list[dict[str, Any]] = []

    def register() -> None:
        for resource in render(lambda: stack.build(parse(rendered(config)))).resources:
            if "kind" in resource.inputs:
                resource.inputs["metadata"].setdefault("name", f"{resource.name}-auto")
                found.append(resource.inputs)

    with_config(GOOD | tokens, register, (*GOOD, *tokens))
    assert {item["metadata"]["name"] for item in found} >= {"models-credentials-auto", "models-authorities-auto"}
    assert [item["kind"] for item in found if "hunter2" in str(item)] == ["Secret"]
    assert rules.violations(found) == []


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_model_that_comes_or_goes_with_the_image_leaves_every_replica_alone() -> None:
    """The code comes in an image without models, so another store is another writer, another cleaner, and the same fleet."""
    assert changed(build("1"), build("2", "added:1")) == {"publish", "clean", "probe"}


def test_another_store_under_the_same_names_is_written_and_cleaned_up() -> None:
    assert changed(build("1"), build("2")) == {"publish", "clean"}


def test_the_two_images_start_in_the_same_way() -> None:
    code, models = embedded.runtime_config("model-sync"), embedded.runtime_config("models")
    assert (code.entrypoint, code.env, code.user, code.working_dir) == (models.entrypoint, models.env, models.user, models.working_dir)
