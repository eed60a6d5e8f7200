"""The prod stack in a cluster that has other fleets, rules of its own, and its own way in."""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest

from api_server.settings import Route
from infra.analysis.policy import rules
from infra.program import stack
from infra.program.settings import parse
from infra.program.settings.images import VERIFIER_IMAGE
from infra.program.settings.section import SettingsError
from infra.program.settings.workloads import WorkloadName
from tests.component.harness import render, rendered
from tests.unit.test_settings import FLEET, REFS, document
from tests.unit.test_settings_fuzz import GOOD, with_config

WORKLOADS = get_args(WorkloadName)
OF_NO_NAMESPACE = ("Namespace", "PriorityClass", "RuntimeClass", "StorageClass", "ValidatingWebhookConfiguration")
OF_A_LABEL = ("Namespace", "Service", "StatefulSet", "Job")
"""Kinds whose names become labels of DNS, or values of labels of their pods."""
ASKED: dict[str, Any] = {
    "nodeSelector": {"example.com/pool": "models"},
    "tolerations": [{"key": "dedicated", "value": "models", "effect": "NoSchedule"}],
    "zones": "require",
}
COST, NOTE = {"example.com/cost-centre": "4711"}, {"example.com/owner": "team-b"}


def made(build: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """Everything that is registered, with names as the provider would make them."""
    for resource in render(build).resources:
        if "kind" in resource.inputs:
            resource.inputs["metadata"].setdefault("name", f"{resource.name}-auto")
            yield resource.inputs


@functools.cache
def objects(namespace: str = "team-b") -> list[dict[str, Any]]:
    """Everything that the stack registers."""
    config = document(FLEET) | {
        "images": {"refs": {**REFS, VERIFIER_IMAGE: REFS["ollama"]}, "trust": {"publicKeys": "-----BEGIN PUBLIC KEY-----"}}
    }
    config["apiServer"] |= {
        "serviceType": "LoadBalancer",
        "clientCidrs": ["10.0.0.0/8"],
        "loadBalancerClass": "example.com/internal",
        "serviceAnnotations": {"example.com/internal": "true"},
        "ipFamilyPolicy": "PreferDualStack",
    }
    config["workloads"] = {name: ASKED | {"accountAnnotations": {"example.com/role": name}} for name in WORKLOADS}
    config["fleet"] |= {"scaleToZero": {"kubernetesCidrs": ["10.0.0.1/32"]}} if namespace == "from-zero" else {}
    config["gpu"] |= {"sharing": {"strategy": "mps", "replicas": 2}, "memory": "192Gi"}
    config["monitoring"] |= {"prometheus": {"resources": {"cpu": "100m", "memory": "512Mi"}}}
    secrets = GOOD | {"verifierTls": json.dumps({"certificate": "c", "privateKey": "k"})}
    found: list[dict[str, Any]] = []

    def build() -> None:
        settings = parse(rendered(config, namespace=namespace, labels=COST, annotations=NOTE, userIds="assigned"))
        found.extend(made(lambda: stack.build(settings)))

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **secrets}, build, tuple(secrets))
    return found


def names(namespace: str) -> set[str]:
    """Of what is not in the fleet's namespaces."""
    inside = (namespace, f"{namespace}-admission")
    return {f"{item['kind']}/{item['metadata']['name']}" for item in objects(namespace) if item["metadata"].get("namespace") not in inside}


def test_two_fleets_of_a_cluster_have_no_object_in_common() -> None:
    ours, theirs = names("modelfleet"), names("team-b")
    assert {name.partition("/")[0] for name in theirs} == {*OF_NO_NAMESPACE, "ConfigMap"}
    assert len(ours) == len(theirs) >= 10
    assert not ours & theirs


def test_names_of_the_longest_namespace_fit_into_their_limits() -> None:
    """Source of the limits: RFC 1123 for what is a label of DNS, Kubernetes for the names of everything else."""
    longest = objects("n" * 53)
    for item in longest:
        name, labels = item["metadata"]["name"], item["metadata"].get("labels", {})
        assert len(name) <= (63 if item["kind"] in OF_A_LABEL else 253), name
        assert all(len(value) <= 63 for value in labels.values()), labels
    assert max(len(item["metadata"]["name"]) for item in longest if item["kind"] == "Namespace") == 63


def test_whoever_uses_a_class_names_the_fleets_own() -> None:
    made = {item["metadata"]["name"] for item in objects() if item["kind"] in OF_NO_NAMESPACE}
    pods = [item["spec"]["template"]["spec"] for item in objects() if "template" in item.get("spec", {})]
    used = {pod.get(name) for pod in pods for name in ("priorityClassName", "runtimeClassName")}
    used |= {item["spec"]["storageClassName"] for item in objects() if item["kind"] == "PersistentVolumeClaim"}
    used |= {claim["spec"]["storageClassName"] for item in objects() for claim in item.get("spec", {}).get("volumeClaimTemplates", [])}
    quotas = [item["spec"].get("scopeSelector") for item in objects() if item["kind"] == "ResourceQuota"]
    used |= {value for quota in quotas if quota for each in quota["matchExpressions"] for value in each["values"]}
    assert used - {None} <= made
    assert len(used) >= 6


@pytest.mark.parametrize(("field", "wanted"), [("labels", COST), ("annotations", NOTE)])
def test_every_object_and_every_pod_bears_what_the_clusters_rules_ask_for(field: str, wanted: dict[str, str]) -> None:
    templates = [item["spec"]["template"] for item in objects() if "template" in item.get("spec", {})]
    assert templates
    for item in [*objects(), *templates]:
        assert wanted.items() <= item["metadata"].get(field, {}).items(), item
    for item in objects():
        assert item["metadata"]["annotations"]["modelfleet.dev/stack"].endswith("/modelfleet/test")
        assert "example.com/cost-centre" not in str(item.get("spec", {}).get("selector", ""))


def test_a_load_balancer_is_told_who_makes_it_and_whom_it_lets_through() -> None:
    (service,) = (item for item in objects() if item["kind"] == "Service" and item["metadata"]["name"] == "api-server")
    assert service["metadata"]["annotations"].items() >= {"example.com/internal": "true", "pulumi.com/skipAwait": "true"}.items()
    spec = service["spec"]
    assert (spec["loadBalancerClass"], spec["loadBalancerSourceRanges"]) == ("example.com/internal", ["10.0.0.0/8"])
    assert spec["externalTrafficPolicy"] == "Local", "a policy would see the node's address"
    assert spec["ipFamilyPolicy"] == "PreferDualStack"


def templates(namespace: str = "team-b") -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, workload and pod of everything that makes pods."""
    made = [item for item in objects(namespace) if "template" in item.get("spec", {})]
    return [(item["kind"], item["metadata"]["labels"]["app.kubernetes.io/name"], item["spec"]["template"]["spec"]) for item in made]


def test_what_everything_waits_for_makes_room_for_itself() -> None:
    """No pod starts without a verifier, no server without the writer, and an exporter is of most use on a node that is full."""
    found = {(kind, workload): pod.get("priorityClassName") for kind, workload, pod in templates()}
    assert found["Deployment", "image-verifier"] == "team-b-gateway-priority"
    assert found["Job", "model-sync"] == found["DaemonSet", "metrics-exporter"] == "team-b-gpu-priority"
    assert found["Deployment", "metrics-exporter"] is None


def test_a_model_server_has_the_time_that_a_large_model_takes() -> None:
    (server,) = (item["spec"] for item in objects() if item["kind"] == "StatefulSet" and item["metadata"]["name"] == "model-server")
    (container,) = server["template"]["spec"]["containers"]
    probe = container["startupProbe"]
    # 19 GB at a quarter of the speed that a network file system was seen to have.
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 19e9 / 18e6


def test_one_pod_a_node_is_not_spread() -> None:
    (pod,) = (pod for kind, _, pod in templates() if kind == "DaemonSet")
    assert "topologySpreadConstraints" not in pod


def test_every_workload_goes_where_it_is_told_to() -> None:
    found = [*templates(), *templates("from-zero")]
    assert {workload for _, workload, _ in found} == set(WORKLOADS)
    for kind, workload, pod in found:
        toleration = {"key": "dedicated", "operator": "Equal", "value": "models", "effect": "NoSchedule"}
        assert toleration in pod["tolerations"], workload
        zones = [each for each in pod.get("topologySpreadConstraints", []) if each["topologyKey"] == "topology.kubernetes.io/zone"]
        assert [each["whenUnsatisfiable"] for each in zones] == ([] if kind == "DaemonSet" else ["DoNotSchedule"]), workload
        # An exporter of GPUs goes to every node with GPUs, in no pool alone.
        selector = {"nvidia.com/gpu.present": "true"} if kind == "DaemonSet" else {"example.com/pool": "models"}
        assert pod["nodeSelector"] == selector, workload


@pytest.mark.parametrize(
    ("images", "architecture"),
    [
        ({"refs": REFS}, None),
        ({"refs": REFS, "platform": "linux/arm64"}, "arm64"),
        ({"builder": "docker-build"}, "amd64"),
        ({"builder": "docker-build", "platform": "linux/arm64"}, "arm64"),
    ],
)
def test_pods_go_to_nodes_that_their_images_run_on(images: dict[str, Any], architecture: str | None) -> None:
    config: dict[str, Any] = document("prod") | {"images": images}
    config["workloads"] = {"ollama": {"nodeSelector": {"example.com/pool": "models"}}}
    config["modelServers"][0]["placement"] = {"nodeSelector": {"example.com/pool": "cpu"}}
    pods = templates_of(config)
    assert {workload for _, workload, _ in pods} >= {"ollama", "api-server", "model-sync", "metrics-exporter", "model-server"}
    for kind, workload, pod in pods:
        selector = pod.get("nodeSelector") or {}
        assert selector.get("kubernetes.io/arch") == architecture, workload
        assert ("example.com/pool" in selector) == (workload in ("ollama", "model-server")), workload
        assert kind != "DaemonSet" or selector["nvidia.com/gpu.present"] == "true"


def test_an_architecture_that_the_images_lack_is_refused() -> None:
    arm = {"nodeSelector": {"kubernetes.io/arch": "arm64"}}
    config = document("prod")
    config["workloads"] = {"ollama": arm, "api-server": {"nodeSelector": {"kubernetes.io/arch": "amd64"}}}
    config["modelServers"][0]["placement"] = arm
    with pytest.raises(SettingsError) as error:
        parse(config)
    want = "got arm64, want amd64, which images.platform stands for; correct one of them"
    assert str(error.value).splitlines() == [
        f"modelfleet:workloads.ollama.nodeSelector.kubernetes.io/arch: {want}",
        f"modelfleet:modelServers.0.placement.nodeSelector.kubernetes.io/arch: {want}",
    ]
    # Prebuilt images may be of several.
    parse(config | {"images": {"refs": REFS}})


def test_every_workload_has_an_account_of_its_own_and_no_token_of_it() -> None:
    accounts = {
        (item["metadata"]["namespace"], item["metadata"]["name"]): item for item in objects("from-zero") if item["kind"] == "ServiceAccount"
    }
    for _, workload, pod in templates("from-zero"):
        assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == (workload, False)
        account = accounts["from-zero-admission" if workload == "image-verifier" else "from-zero", workload]
        assert account["automountServiceAccountToken"] is False
        assert account["metadata"]["annotations"]["example.com/role"] == workload


def test_no_pod_names_a_user_where_the_platform_assigns_them() -> None:
    for _, workload, pod in templates():
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod["securityContext"].keys(), workload
        assert pod["securityContext"]["runAsNonRoot"] is True


def templates_of(config: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, workload and pod of everything that makes pods, of that configuration."""
    found: list[dict[str, Any]] = []

    def build() -> None:
        settings = parse(rendered(config))
        found.extend(made(lambda: stack.build(settings)))

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **GOOD}, build, tuple(GOOD))
    return [
        (item["kind"], item["metadata"]["labels"]["app.kubernetes.io/name"], item["spec"]["template"]["spec"])
        for item in found
        if "template" in item.get("spec", {})
    ]


def test_classes_and_claims_that_are_there_are_used_and_not_made() -> None:
    config = document("prod") | {"images": {"refs": REFS}}
    config["storage"] |= {"hot": {"className": "fast", "size": "100Gi"}, "shared": {"claim": "everything", "size": "1Ti"}}
    config["gpu"] |= {"runtimeClass": "", "priorityClasses": {"gateway": "high", "serving": "middle", "batch": "low"}}
    found: list[dict[str, Any]] = []

    def build() -> None:
        settings = parse(rendered(config))
        found.extend(made(lambda: stack.build(settings)))

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **GOOD}, build, tuple(GOOD))
    assert {item["kind"] for item in found} & {*OF_NO_NAMESPACE, "PersistentVolumeClaim"} == {"Namespace"}
    pods = [item["spec"]["template"]["spec"] for item in found if "template" in item.get("spec", {})]
    claims = {
        volume["persistentVolumeClaim"]["claimName"] for pod in pods for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    }
    assert claims == {"everything"}
    assert {pod.get("priorityClassName") for pod in pods} == {"high", "middle", None}
    assert not any("runtimeClassName" in pod for pod in pods)
    (batch,) = (item["spec"]["scopeSelector"] for item in found if "scopeSelector" in item.get("spec", {}))
    assert batch["matchExpressions"][0]["values"] == ["low"]
    assert rules.violations(found) == []


def test_all_of_it_keeps_our_own_rules() -> None:
    assert rules.violations(objects()) == []


def test_a_stack_for_clients_with_ipv6_keeps_our_own_rules() -> None:
    networks = ["2001:db8::/32", "fd00::/8"]
    config = document("dev")
    config["apiServer"]["clientCidrs"] = networks
    config["delivery"] = {"networks": networks}
    config["models"][0] |= {"source": "https://[2001:db8::7]:8443/m.gguf", "digest": f"sha256:{'0' * 64}"}
    found: list[dict[str, Any]] = []

    def build() -> None:
        settings = parse(rendered(config))
        found.extend(made(lambda: stack.build(settings)))

    with_config({**{name: json.dumps(value) for name, value in config.items()}, **GOOD}, build, tuple(GOOD))
    assert rules.violations(found) == []
    policies = {item["metadata"]["name"]: item["spec"] for item in found if item["kind"] == "NetworkPolicy"}
    clients = [rule["from"] for rule in policies["api-server"]["ingress"] if {"port": 8000, "protocol": "TCP"} in rule["ports"]]
    assert clients == [[{"ipBlock": {"cidr": network}} for network in networks]]
    assert policies["model-sync"]["egress"] == [
        {"to": [{"ipBlock": {"cidr": "2001:db8::7/128"}}], "ports": [{"port": 8443, "protocol": "TCP"}]}
    ]


@pytest.mark.parametrize(
    ("proxy", "networks", "ways"),
    [
        ("http://10.0.0.7:3128", ["192.0.2.0/24"], [("10.0.0.7/32", 3128), ("192.0.2.0/24", 443)]),
        ("http://[fd00::7]:3128", ["192.0.2.0/24"], [("fd00::7/128", 3128), ("192.0.2.0/24", 443)]),
        ("http://proxy.example.com:3128", ["10.0.0.0/24"], [("10.0.0.0/24", 3128), ("10.0.0.0/24", 443)]),
    ],
)
def test_on_a_company_network_the_writer_reaches_its_proxy_and_not_the_world(proxy: str, networks: list[str], ways: list[Any]) -> None:
    config = document("dev")
    config["delivery"] = {"proxy": proxy, "noProxy": ["corp.example.com"], "networks": networks}
    outside, inside = "https://huggingface.co/m.gguf", "registry://registry.corp.example.com/team/m:1"
    small = {**config["models"][0], "digest": f"sha256:{'0' * 64}"}
    config["models"] = [small | {"source": outside}, small | {"name": "b:1", "source": inside}]
    config["fleet"]["resources"]["memory"] = "2Gi"
    tokens = json.dumps({urlsplit(proxy).netloc: "writer:hunter2"})
    found: list[dict[str, Any]] = []

    def build() -> None:
        settings = parse(rendered(config))
        found.extend(made(lambda: stack.build(settings)))

    secrets = GOOD | {"sourceTokens": tokens}
    with_config({**{name: json.dumps(value) for name, value in config.items()}, **secrets}, build, tuple(secrets))
    assert rules.violations(found) == []
    (policy,) = (item["spec"] for item in found if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] == "model-sync")
    blocks = [rule for rule in policy["egress"] if "ipBlock" in rule["to"][0]]
    assert [(rule["to"][0]["ipBlock"]["cidr"], rule["ports"][0]["port"]) for rule in blocks] == ways
    assert len(policy["egress"]) == 3, "and names are looked up"
    writer = next(item for item in found if item["kind"] == "Job" and "publish" in str(item))
    (container,) = writer["spec"]["template"]["spec"]["containers"]
    assert {f"--proxy={proxy}", "--no-proxy=corp.example.com"} < set(container["args"])
    assert [item["kind"] for item in found if "hunter2" in str(item)] == ["Secret"]


def test_the_gateway_reaches_the_pools_of_others_and_nothing_else_of_theirs() -> None:
    config = document("prod")
    model = {"id": "large", "model": "org/large", "contextLength": 131072}
    config["externalPools"] = {
        "cloud": {
            "url": "https://models.example.com/v1",
            "networks": ["203.0.113.0/24", "2001:db8::/32"],
            "models": [model],
            "sessionHeader": "x-session",
        },
        "near": {
            "url": "http://llm-d.inference.svc:8000/v1",
            "pods": {"namespace": "inference", "labels": {"app": "gateway"}, "port": 8080},
            "models": [model | {"id": "near"}],
        },
    }
    found: list[dict[str, Any]] = []

    def build() -> None:
        settings = parse(rendered(config))
        found.extend(made(lambda: stack.build(settings)))

    secrets = GOOD | {"externalKeys": json.dumps({"cloud": "hunter2"})}
    with_config({**{name: json.dumps(value) for name, value in config.items()}, **secrets}, build, tuple(secrets))
    assert rules.violations(found) == []
    policies = {item["metadata"]["name"]: item["spec"] for item in found if item["kind"] == "NetworkPolicy"}
    blocks = [(name, rule) for name, policy in policies.items() for rule in policy.get("egress", []) if "ipBlock" in str(rule["to"])]
    outside = [(name, rule) for name, rule in blocks if "203.0.113.0/24" in str(rule)]
    assert [(name, rule["ports"]) for name, rule in outside] == [("api-server", [{"port": 443, "protocol": "TCP"}])]
    (near,) = (rule for rule in policies["api-server"]["egress"] if "inference" in str(rule))
    assert near["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert near["to"][0]["podSelector"]["matchLabels"] == {"app": "gateway"}
    (policy,) = (item for item in found if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] == "api-server")
    assert policy["metadata"]["annotations"]["modelfleet.dev/pools"] == "203.0.113.0/24:443 2001:db8::/32:443 inference:8080"
    for named in ("", "203.0.113.0/24:80 2001:db8::/32:443 inference:8080", "203.0.113.0/24:443 2001:db8::/32:443 other:8080"):
        policy["metadata"]["annotations"]["modelfleet.dev/pools"] = named
        assert any("got a way from api-server to " in line for line in rules.violations(found)), "what nobody named is refused"
    assert [item["metadata"]["name"] for item in found if "hunter2" in str(item)] == ["api-server-pool-keys"]
    (api,) = (item for item in found if item["kind"] == "Deployment" and item["metadata"]["name"] == "api-server")
    env = {entry["name"]: entry.get("value") for entry in api["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["API_SERVER_POOL_KEYS_FILE"] == "/etc/pool-keys/keys"
    routes = {name: Route.model_validate(route) for name, route in json.loads(env["API_SERVER_ROUTES"]).items()}
    assert (routes["large"].pool, routes["large"].model, routes["large"].session_header) == ("cloud", "org/large", "x-session")
    assert (routes["near"].url, routes["near"].context_length) == ("http://llm-d.inference.svc:8000/v1", 131072)


def test_only_the_verifier_of_production_lets_no_debug_container_in() -> None:
    (deployment,) = [item for item in objects() if (item["kind"], item["metadata"]["name"]) == ("Deployment", "image-verifier")]
    values = {each["name"]: each.get("value") for each in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert values["VERIFIER_DEBUG_CONTAINERS"] == "0"
