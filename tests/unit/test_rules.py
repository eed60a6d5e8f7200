"""Rules that no defect of the original design exercises: a manifest that passes, and one that fails, for each."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.analysis.policy import rules

Change = dict[str, Any]


def pod(*, spec: Change | None = None, **container: Any) -> dict[str, Any]:
    first = {"name": "main", "image": "x@sha256:" + "a" * 64, **container}
    return {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": {"spec": {"containers": [first], **(spec or {})}}}}


def service(kind: str, annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"kind": "Service", "metadata": {"name": "s", "annotations": annotations or {}}, "spec": {"type": kind, **spec}}


def config(text: str, key: str = "a.conf") -> dict[str, Any]:
    return {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {key: text}}


def namespace(purpose: str) -> dict[str, Any]:
    return {"kind": "Namespace", "metadata": {"name": "n", "labels": {"modelfleet.dev/data": purpose}}}


def env(name: str, value: str) -> list[dict[str, str]]:
    return [{"name": name, "value": value}]


CLASS = {"kind": "StorageClass", "metadata": {"name": "k"}, "reclaimPolicy": "Retain"}
SET = {
    "kind": "StatefulSet",
    "metadata": {"name": "f"},
    "spec": {"volumeClaimTemplates": [{}], "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"}},
}
CLAIM = {"kind": "PersistentVolumeClaim", "metadata": {"name": "p", "annotations": {"modelfleet.dev/protected": "true"}}}
DELETED_SET = copy.deepcopy(SET)
DELETED_SET["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] = "Delete"  # type: ignore[index]
MPS = env("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=20G")
SHARE = {"limits": {"nvidia.com/gpu.shared": "1"}}
SLICED = config("version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}\n", key="plugin")
ACKNOWLEDGED = {**SLICED, "metadata": {"name": "c", "annotations": {"modelfleet.dev/gpu-memory": "not-isolated"}}}
EVERY_GPU = env("NVIDIA_VISIBLE_DEVICES", "all")

TO_AN_ADDRESS = {
    "kind": "NetworkPolicy",
    "metadata": {"name": "n"},
    "spec": {"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "ports": [{"port": 443}]}]},
}

PASSES: list[tuple[rules.Rule, list[dict[str, Any]]]] = [
    (rules.no_container_is_privileged, [pod(securityContext={"runAsUser": 10001, "capabilities": {"drop": ["ALL"]}})]),
    (rules.no_container_is_privileged, [pod(securityContext={"privileged": False, "runAsNonRoot": True})]),
    (rules.pods_stay_off_the_host, [pod(ports=[{"containerPort": 80}], spec={"hostNetwork": False, "volumes": [{"emptyDir": {}}]})]),
    (rules.nothing_is_exposed_unasked, [service("ClusterIP"), service("NodePort", {"modelfleet.dev/exposed": "NodePort"})]),
    (rules.policies_that_look_names_up_may_reach_dns, [TO_AN_ADDRESS]),
    (rules.nothing_is_exposed_unasked, [service("LoadBalancer", {"modelfleet.dev/exposed": "LoadBalancer"})]),
    (rules.gpu_shares_have_a_memory_limit, [pod(resources={"limits": {"nvidia.com/gpu": "1"}})]),
    (rules.gpu_shares_have_a_memory_limit, [pod(resources={"limits": {"nvidia.com/mig-1g.10gb": "1"}})]),
    (rules.gpu_shares_have_a_memory_limit, [pod(resources=SHARE, env=MPS)]),
    (rules.gpu_shares_have_a_memory_limit, [pod(resources=SHARE), config("sharing: {mps: {resources: []}}", key="plugin")]),
    (rules.gpu_shares_have_a_memory_limit, [pod(resources=SHARE), ACKNOWLEDGED]),
    (rules.gpu_shares_have_a_memory_limit, [pod(env=EVERY_GPU + env("NVIDIA_DRIVER_CAPABILITIES", "utility"))]),
    (rules.no_secret_is_in_plaintext, [pod(env=env("CACHE_PASSWORD_FILE", "/etc/auth/password") + env("MAX_TOKENS", "9"))]),
    (rules.no_secret_is_in_plaintext, [pod(env=[{"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}])]),
    (rules.no_secret_is_in_plaintext, [pod(env=env("OLLAMA_KEEP_ALIVE", "-1") + env("URL", "redis://cache-server:6379/0"))]),
    (rules.no_secret_is_in_plaintext, [config("protected-mode yes\ninclude /etc/cache-auth/auth.conf\n")]),
    (rules.claims_are_protected, [namespace("disposable"), {**CLASS, "reclaimPolicy": "Delete"}, DELETED_SET]),
    (rules.claims_are_protected, [namespace("retain"), CLASS, SET, CLAIM]),
    (rules.secrets_are_masked, [{"kind": "Secret", "metadata": {"name": "s"}, "data": {"keys": "REDACTED"}}]),
]
FAILS: list[tuple[rules.Rule, list[dict[str, Any]], str]] = [
    (rules.no_container_is_privileged, [pod(securityContext={"privileged": True})], "got container main with privileged"),
    (rules.no_container_is_privileged, [pod(securityContext={"runAsUser": 0})], "with runAsUser 0"),
    (rules.no_container_is_privileged, [pod(securityContext={"runAsNonRoot": False})], "with runAsNonRoot false"),
    (rules.no_container_is_privileged, [pod(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}})], "with added capabilities"),
    (rules.no_container_is_privileged, [pod(spec={"securityContext": {"runAsUser": 0}})], "got pods with runAsUser 0"),
    (
        rules.no_container_is_privileged,
        [pod(spec={"initContainers": [{"name": "i", "securityContext": {"privileged": True}}]})],
        "container i",
    ),
    (rules.pods_stay_off_the_host, [pod(spec={"hostNetwork": True})], "Deployment/d: got hostNetwork"),
    (rules.pods_stay_off_the_host, [pod(spec={"hostPID": True})], "got hostPID"),
    (rules.pods_stay_off_the_host, [pod(spec={"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})], "got hostPath volume v"),
    (rules.pods_stay_off_the_host, [pod(ports=[{"containerPort": 80, "hostPort": 80}])], "got hostPort 80"),
    (rules.nothing_is_exposed_unasked, [service("LoadBalancer")], "Service/s: got type LoadBalancer"),
    (rules.nothing_is_exposed_unasked, [service("LoadBalancer", {"modelfleet.dev/exposed": "NodePort"})], "got type LoadBalancer"),
    (rules.nothing_is_exposed_unasked, [service("ClusterIP", externalIPs=["192.0.2.1"])], "got externalIPs"),
    (rules.gpu_shares_have_a_memory_limit, [pod(resources=SHARE)], "got nvidia.com/gpu.shared without a memory limit"),
    (rules.gpu_shares_have_a_memory_limit, [pod(resources=SHARE, env=env(MPS[0]["name"], ""))], "without a memory limit"),
    (rules.gpu_shares_have_a_memory_limit, [pod(resources=SHARE), SLICED], "got nvidia.com/gpu.shared without a memory limit"),
    (rules.gpu_shares_have_a_memory_limit, [pod(env=EVERY_GPU)], "got every GPU without a claim"),
    (rules.no_secret_is_in_plaintext, [pod(env=env("CACHE_PASSWORD", "hunter2"))], "in env CACHE_PASSWORD"),
    (rules.no_secret_is_in_plaintext, [pod(env=env("OPENAI_API_KEY", "x"))], "in env OPENAI_API_KEY"),
    (rules.no_secret_is_in_plaintext, [pod(env=env("API_SERVER_KEYS", "x"))], "in env API_SERVER_KEYS"),
    (rules.no_secret_is_in_plaintext, [pod(env=env("URL", "redis://:hunter2@cache-server:6379/0"))], "in env URL"),
    (rules.no_secret_is_in_plaintext, [pod(args=["--hub", "hf_" + "a" * 30])], "in an argument of main"),
    (rules.no_secret_is_in_plaintext, [config("port 1\nrequirepass hunter2\n")], "ConfigMap/c: got what looks like a secret in a.conf"),
    (rules.no_secret_is_in_plaintext, [config("-----BEGIN RSA PRIVATE KEY-----")], "in a.conf"),
    (rules.no_secret_is_in_plaintext, [config("x", key="password")], "in password"),
    (rules.claims_are_protected, [namespace("retain"), {**CLASS, "reclaimPolicy": "Delete"}], "StorageClass/k: got reclaimPolicy Delete"),
    (rules.claims_are_protected, [{"kind": "StorageClass", "metadata": {"name": "k"}}], "got reclaimPolicy Delete"),
    (rules.claims_are_protected, [DELETED_SET], "StatefulSet/f: got claims that go with it"),
    (
        rules.claims_are_protected,
        [namespace("retain"), {**CLAIM, "metadata": {"name": "p"}}],
        "PersistentVolumeClaim/p: got a claim that can",
    ),
    (
        rules.secrets_are_masked,
        [{"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"keys": "x"}}],
        "Secret/s: got the value of keys",
    ),
]


@pytest.mark.parametrize(("rule", "objects"), PASSES, ids=[f"{rule.__name__}-{number}" for number, (rule, _) in enumerate(PASSES)])
def test_a_good_manifest_passes(rule: rules.Rule, objects: list[dict[str, Any]]) -> None:
    assert rule(objects) == []


@pytest.mark.parametrize(("rule", "objects", "text"), FAILS, ids=[f"{rule.__name__}-{number}" for number, (rule, _, _) in enumerate(FAILS)])
def test_a_bad_manifest_is_named_with_its_remedy(rule: rules.Rule, objects: list[dict[str, Any]], text: str) -> None:
    lines = rule(objects)
    assert len(lines) == 1
    assert text in lines[0]
    assert ", want " in lines[0]
    assert "; " in lines[0]


def test_prod_says_that_its_data_is_kept_and_dev_that_it_is_not() -> None:
    golden = Path(__file__).parents[1] / "golden"
    found = {stack: yaml.safe_load((golden / stack / "namespace-modelfleet.yaml").read_text()) for stack in ("dev", "prod")}
    assert {stack: item["metadata"]["labels"]["modelfleet.dev/data"] for stack, item in found.items()} == {
        "dev": "disposable",
        "prod": "retain",
    }


def test_no_secret_is_repeated_in_a_message() -> None:
    found = rules.no_secret_is_in_plaintext([pod(env=env("CACHE_PASSWORD", "hunter2")), config("requirepass hunter2")])
    assert len(found) == 2
    assert "hunter2" not in "".join(found)
