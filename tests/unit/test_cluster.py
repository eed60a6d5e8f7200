"""What a cluster of the user's own says about itself before anything is changed."""

from collections.abc import Mapping
from typing import Any

import pytest

from infra.lifecycle import cluster_check
from infra.program import cluster
from infra.program.settings import parse
from infra.program.settings.cluster import ClusterSettings
from infra.program.settings.section import SettingsError
from infra.program.settings.services import ApiServerSettings
from infra.program.settings.storage import StorageSettings
from tests.unit.test_settings import document

SETTINGS = ClusterSettings(context="theirs", identity="3f1c", namespace="team-b")


def theirs() -> cluster.Objects:
    return cluster.Objects("theirs")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Mapping[str, Any]]:
    """Path to what the API server answers; what is not in it does not exist."""
    found: dict[str, Mapping[str, Any]] = {}
    monkeypatch.setattr(cluster.Objects, "_get", lambda _, path: found.get(path))
    monkeypatch.setattr(cluster.Objects, "identity", lambda _: "3f1c")
    return found


@pytest.mark.parametrize(("major", "minor", "got"), [("1", "31", "1.31"), ("1", "29+", "1.29")])
def test_a_cluster_that_is_too_old_is_refused(answers: dict[str, Mapping[str, Any]], major: str, minor: str, got: str) -> None:
    answers["/version"] = {"major": major, "minor": minor}
    with pytest.raises(SettingsError, match=rf"^modelfleet:cluster.context: got Kubernetes {got} behind it, want 1.32 or newer; upgrade"):
        cluster.check(SETTINGS, theirs())


def test_claims_of_devices_need_a_newer_one(answers: dict[str, Mapping[str, Any]]) -> None:
    answers["/version"] = {"major": "1", "minor": "33+"}
    cluster.check(SETTINGS, theirs())
    with pytest.raises(SettingsError, match=r"got Kubernetes 1.33 behind it, want 1.34 or newer"):
        cluster.check(SETTINGS, theirs(), cluster.CLAIMS_OF_DEVICES)


def test_a_class_that_is_named_and_not_there_is_refused(answers: dict[str, Mapping[str, Any]]) -> None:
    kind = {"name": "storageclasses", "kind": "StorageClass", "namespaced": False, "verbs": ["get"]}
    answers |= {"/apis/storage.k8s.io/v1": {"resources": [kind]}, "/apis/storage.k8s.io/v1/storageclasses/fast": {"metadata": {}}}

    def storage(**shared: str) -> StorageSettings:
        return StorageSettings.model_validate({"hot": {"className": "fast", "size": "1Gi"}, "shared": {"size": "1Gi", **shared}})

    cluster.check_classes(storage(provisioner="nfs.csi.k8s.io"), theirs())
    cluster.check_classes(storage(claim="theirs"), theirs())
    with pytest.raises(SettingsError, match=r"^modelfleet:storage.shared.className: got 'standrad', which the cluster does not have, want"):
        cluster.check_classes(storage(className="standrad"), theirs())


def test_model_servers_of_before_are_the_deployments_that_are_there(answers: dict[str, Mapping[str, Any]]) -> None:
    """Those of this namespace, and of the stack's own names."""
    kind = {"name": "deployments", "kind": "Deployment", "namespaced": True, "verbs": ["get"]}
    there = "/apis/apps/v1/namespaces/modelfleet/deployments"
    answers |= {"/apis/apps/v1": {"resources": [kind]}, "/apis/apps/v1/namespaces/other/deployments/model-server": {"metadata": {}}}
    settings = parse(document("dev"))
    assert cluster.old_servers(settings, theirs()) == frozenset()
    answers |= {f"{there}/{name}": {"metadata": {}} for name in ("model-server", "api-server", "model-server-theirs")}
    assert cluster.old_servers(settings, theirs()) == {"model-server"}


GATEWAY = "/apis/gateway.networking.k8s.io/v1"


def kinds(*names: str) -> dict[str, Any]:
    return {"resources": [{"name": f"{name.lower()}s", "kind": name, "namespaced": True, "verbs": ["get"]} for name in names]}


@pytest.mark.parametrize(
    ("there", "lines"),
    [
        ({}, ["apiServer.tls.issuer: got a cluster without Certificate of cert-manager.io/v1, want it; install cert-manager, or use tls.secret",
              "apiServer.wayIn.httpRoute: got a cluster without HTTPRoute of gateway.networking.k8s.io/v1, want it; install the Gateway API, or",
              "apiServer.wayIn.httpRoute: got a cluster without BackendTLSPolicy of gateway.networking.k8s.io/v1, want it; install the Gateway API 1.4"]),
        ({"/apis/cert-manager.io/v1": kinds("Certificate"), GATEWAY: kinds("HTTPRoute")}, ["apiServer.wayIn.httpRoute: got a cluster without BackendTLSPolicy"]),
        ({"/apis/cert-manager.io/v1": kinds("Certificate"), GATEWAY: kinds("HTTPRoute", "BackendTLSPolicy")}, []),
    ],
)  # fmt: skip
def test_kinds_of_others_are_looked_for_before_anything(
    answers: dict[str, Mapping[str, Any]], there: dict[str, Any], lines: list[str]
) -> None:
    answers |= there
    route = {"httpRoute": {"gateway": "public", "namespace": "gateways"}, "proxies": [{"namespace": "gateways"}]}
    asked = {"host": "models.example.com", "tls": {"issuer": {"name": "a"}}, "wayIn": route, "resources": {"cpu": "1", "memory": "1Gi"}}
    settings = ApiServerSettings.model_validate(asked)
    found = cluster.missing_apis(settings, theirs())
    assert len(found) == len(lines)
    assert all(got.startswith(f"modelfleet:{want}") for got, want in zip(found, lines, strict=True))
    if lines:
        with pytest.raises(SettingsError) as error:
            cluster.check_apis(settings, theirs())
        assert str(error.value).splitlines() == found
        storage = StorageSettings.model_validate(
            {"hot": {"className": "fast", "size": "1Gi"}, "shared": {"className": "fast", "size": "1Gi"}}
        )
        check = cluster_check.Asked(image="image", storage=storage, user_id=None, production=False, api_server=settings)
        assert [each.error for each in cluster_check.check("theirs", "", check)] == found, "and nothing else is tried"


CORE = {"resources": [{"name": "persistentvolumeclaims", "kind": "PersistentVolumeClaim", "namespaced": True, "verbs": ["get"]}]}
CLAIM = "/api/v1/namespaces/team-b/persistentvolumeclaims/shared-models"


@pytest.mark.parametrize(
    ("stored", "name"), [("shared-models", "local-nvme"), ("team-b-shared-models", "team-b-local-nvme"), (None, "team-b-local-nvme")]
)
def test_a_stack_that_was_made_with_plain_names_keeps_them(answers: dict[str, Mapping[str, Any]], stored: str | None, name: str) -> None:
    answers["/api/v1"] = CORE
    if stored is not None:
        answers[CLAIM] = {"spec": {"storageClassName": stored}}
    assert cluster.with_kept_names(SETTINGS, theirs()).wide("local-nvme") == name


def test_a_prefix_that_is_set_is_not_asked_about(answers: dict[str, Mapping[str, Any]]) -> None:
    answers |= {"/api/v1": CORE, CLAIM: {"spec": {"storageClassName": "shared-models"}}}
    assert cluster.with_kept_names(SETTINGS.model_copy(update={"prefix": "b-"}), theirs()).wide("x") == "b-x"


def test_an_object_of_a_kind_that_the_cluster_does_not_know_is_not_there(answers: dict[str, Mapping[str, Any]]) -> None:
    answers["/api/v1"] = CORE
    wanted = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "x", "namespace": "team-b"}}
    assert cluster.Objects("theirs").find(wanted) is None


KUBECONFIG = {
    "clusters": [{"name": "theirs", "cluster": {"server": "https://127.0.0.1:1"}}],
    "contexts": [{"name": "theirs", "context": {"cluster": "theirs", "user": "us"}}],
    "users": [{"name": "us", "user": {"token": "t"}}],
}


def test_a_kubeconfig_may_come_as_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with pytest.raises(SettingsError, match=r"^modelfleet:cluster.context: got 'ours', want a context of the kubeconfig \(it has theirs\)"):
        cluster.Objects("ours", KUBECONFIG).identity()
    with pytest.raises(SettingsError, match=r"^modelfleet:cluster.context: got no answer from cluster 'theirs'"):
        cluster.Objects("theirs", KUBECONFIG).identity()


def test_a_cluster_behind_a_forward_proxy_is_reached_through_it() -> None:
    """`proxy-url` of a kubeconfig: the Kubernetes client had to learn it (kubernetes-client/python 2679)."""
    behind = {
        **KUBECONFIG,
        "clusters": [{"name": "theirs", "cluster": {"server": "https://127.0.0.1:1", "proxy-url": "http://127.0.0.1:2"}}],
    }
    assert cluster.connect("theirs", behind).configuration.proxy == "http://127.0.0.1:2"
