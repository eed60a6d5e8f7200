"""Images from a private registry: who gets the login, as the whole stack has it, and who does not."""

import base64
import functools
import json
from typing import Any, Literal

import pytest

import components as c
from components.registry_auth import login_for, logins
from infra import ROOT
from infra.analysis.policy import rules
from infra.preparation.certificates import verifier_tls
from infra.program import stack
from infra.program.settings import parse
from infra.program.settings.images import VERIFIER_IMAGE
from tests.component.harness import Recorder, render, rendered
from tests.unit.test_settings import REFS, document
from tests.unit.test_settings_fuzz import GOOD, with_config

PASSWORD = "a-password-of-the-registry"
AUTH = json.dumps({"auths": {"registry.example.com:5000": {"username": "puller", "password": PASSWORD}}})
CERTIFICATE = str(json.loads(verifier_tls("x"))["certificate"])
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


@functools.cache
def recorded(*, private: bool) -> Recorder:
    """The prod stack with everything that makes pods."""
    trust: dict[str, Any] = {"publicKeys": "-----BEGIN PUBLIC KEY-----", "caBundle": CERTIFICATE}
    config = document("prod") | {"images": {"refs": {**REFS, VERIFIER_IMAGE: REFS["ollama"]}, "trust": trust}}
    config["fleet"]["scaleToZero"] = {"kubernetesCidrs": ["10.0.0.1/32"]}
    secrets = GOOD | {"verifierTls": json.dumps({"certificate": "c", "privateKey": "k"})} | ({"registryAuth": AUTH} if private else {})
    found: list[Recorder] = []
    with_config(
        {**{name: json.dumps(value) for name, value in config.items()}, **secrets},
        lambda: found.append(render(lambda: stack.build(parse(rendered(config))))),
        tuple(secrets),
    )
    return found[0]


def workloads(recorder: Recorder) -> dict[str, dict[str, Any]]:
    """Logical name to the inputs of everything that makes pods."""
    return {resource.name: resource.inputs for resource in recorder.resources if resource.inputs.get("kind") in WORKLOADS}


def test_every_pod_of_the_stack_names_the_secret_of_its_namespace() -> None:
    recorder = recorded(private=True)
    secrets = {
        item["metadata"]["namespace"]: item["metadata"]["name"]
        for item in recorder.kind("Secret")
        if item.get("type") == "kubernetes.io/dockerconfigjson"
    }
    assert secrets == dict.fromkeys(("modelfleet", "modelfleet-admission"), "registry-auth")
    made = workloads(recorder)
    assert len(made) >= 10
    for name, item in made.items():
        pod = item["spec"]["template"]["spec"]
        assert pod["imagePullSecrets"] == [{"name": secrets[item["metadata"]["namespace"]]}], name


def test_without_a_login_nothing_is_rendered_of_it() -> None:
    with_login, without = recorded(private=True), recorded(private=False)
    extra = {resource.name for resource in with_login.resources} - {resource.name for resource in without.resources}
    assert extra == {"governance-registry-auth", "image-trust-registry-auth"}
    for name, item in workloads(without).items():
        pod = item["spec"]["template"]["spec"]
        assert "imagePullSecrets" not in pod, name
        wanted = workloads(with_login)[name]["spec"]["template"]["spec"]
        if not name.startswith("image-trust"):
            assert {key: value for key, value in wanted.items() if key != "imagePullSecrets"} == pod, name


def test_the_password_is_in_the_two_secrets_alone_and_no_rule_is_broken() -> None:
    holders = {resource.name for resource in recorded(private=True).resources if PASSWORD in str(resource.inputs)}
    assert holders == {"governance-registry-auth", "image-trust-registry-auth"}
    assert violations(private=True) == violations(private=False)


def violations(*, private: bool) -> list[str]:
    named = [
        {**resource.inputs, "metadata": {"name": resource.name, **resource.inputs["metadata"]}}
        for resource in recorded(private=private).resources
        if "kind" in resource.inputs
    ]
    return rules.violations(named)


def test_the_verifier_reads_the_logins_from_a_file() -> None:
    pod = workloads(recorded(private=True))["image-trust-servers"]["spec"]["template"]["spec"]
    env = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    mount = next(each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "registry-auth")
    assert env["VERIFIER_REGISTRY_AUTH_FILE"] == f"{mount['mountPath']}/.dockerconfigjson"
    assert env["VERIFIER_CA_FILE"] == "/etc/keys/ca.pem"
    (keys,) = (item["data"] for item in recorded(private=True).kind("ConfigMap") if "cosign.pub" in item["data"])
    assert keys["ca.pem"] == CERTIFICATE
    assert next(each for each in pod["volumes"] if each["name"] == "registry-auth")["secret"]["secretName"] == "registry-auth"


@pytest.mark.parametrize("builder", ["docker-build", "docker"])
def test_builders_push_with_the_login(builder: Literal["docker-build", "docker"]) -> None:
    args = c.RuntimeImagesArgs(
        builder=builder, registry="registry.example.com:5000/fleet", registry_auth=AUTH, source=ROOT, images=["api-server"]
    )
    recorder = render(lambda: c.RuntimeImages("i", args))
    (built,) = (resource.inputs for resource in recorder.resources if resource.typ.endswith(":Image"))
    wanted = {"username": "puller", "password": PASSWORD}
    # In the wire form of a secret.
    if builder == "docker-build":
        assert built["registries"]["value"] == [{"address": "registry.example.com:5000", **wanted}]
    else:
        assert built["registry"]["value"] == {"server": "registry.example.com:5000", **wanted}


def test_a_builder_without_a_login_uses_its_own() -> None:
    args = c.RuntimeImagesArgs(builder="docker-build", registry="registry.example.com/fleet", source=ROOT, images=["api-server"])
    (built,) = (each.inputs for each in render(lambda: c.RuntimeImages("i", args)).resources if each.typ.endswith(":Image"))
    assert "registries" not in built


def auths(**entries: Any) -> str:
    return json.dumps({"auths": {name.replace("__", "."): entry for name, entry in entries.items()}})


def test_both_forms_of_a_login_are_read() -> None:
    encoded = base64.b64encode(b"puller:with:colons").decode()
    assert [(each.place, each.username, each.password) for each in logins(auths(a__example={"auth": encoded}))] == [
        ("a.example", "puller", "with:colons")
    ]
    both = {"username": "puller", "password": "with:colons", "email": "", "auth": encoded}
    assert logins(auths(a__example=both)) == logins(auths(a__example={"auth": encoded}))
    (hub,) = logins(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": encoded}}}))
    assert hub.place == "index.docker.io"
    assert "colons" not in repr(hub)


def test_the_login_of_the_longest_place_is_taken() -> None:
    login = {"username": "u", "password": "p"}
    places = ("registry.example.com", "registry.example.com/team", "https://index.docker.io/v1/")
    known = logins(json.dumps({"auths": dict.fromkeys(places, login)}))

    def place(repository: str) -> str | None:
        found = login_for(repository, known)
        return found.place if found else None

    assert place("registry.example.com/team/x") == "registry.example.com/team"
    assert place("registry.example.com/teams/x") == "registry.example.com"
    assert place("docker.io/library/x") == place("someone/x") == "index.docker.io"
    assert place("registry.example.com.evil.example/x") is None
