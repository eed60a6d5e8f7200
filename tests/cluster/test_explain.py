"""Faults injected into the real cluster, each named right by `explain`, and nothing else named beside it."""

import copy
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import processes
from infra.analysis.explain.causes import explain
from infra.analysis.explain.facts import Finding
from infra.analysis.explain.snapshot import Snapshot, collect
from tests.cluster.conftest import Stack
from tests.cluster.faults import CLUSTER_WIDE, FAULTS, UNREACHABLE, Fault, Object
from tests.cluster.kube import Kube, eventually

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
SNAPSHOTS = ROOT / "tests" / "unit" / "snapshots"
"""Written by UPDATE_SNAPSHOTS=1, or by the name of a fault in its place, and replayed by the unit tier."""


def real_model_server(stack: Stack) -> Fault:
    """The stack's own model server with a model that its store does not have."""
    found = stack.kube.get("statefulset", "model-server", "-n", stack.outputs.namespace)
    template = found["spec"]["template"]
    spec = template["spec"]
    for each in spec["containers"][0]["env"]:
        if each["name"] == "MODEL_SERVER_MODEL":
            each["value"] = "missing:1b"
    # Here the store is empty, and nothing is copied to it.
    del spec["initContainers"]
    spec["volumes"] = [
        {"name": "models", "emptyDir": {}},
        *({"name": volume["name"], "emptyDir": {}} if "persistentVolumeClaim" in volume else volume for volume in spec["volumes"]),
    ]
    secret = next(volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume)
    objects: list[Object] = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}, "stringData": {"model-server": "unused-here"}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": spec["serviceAccountName"]}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "model-server"},
            "spec": {"selector": found["spec"]["selector"], "template": template},
        },
    ]
    return Fault(objects, "model-missing", "Deployment/model-server", r"missing:1b.*modelServers.model-server.model")


def look(stack: Stack, namespace: str, key: str | None = None) -> Snapshot:
    return collect(stack.deployment.context, stack.deployment.kubeconfig, namespace, key)


def named(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.cause, finding.subject) for finding in findings]


def apply(kube: Kube, objects: list[Object]) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    eventually(
        lambda: kube.run("apply", "-f", "-", stdin=text, check=False).count("\n"), lambda lines: lines == len(objects), 60, "applied"
    )


@pytest.fixture(scope="module")
def faults(stack: Stack) -> Iterator[dict[str, Fault]]:
    every = {**FAULTS, "model-missing": real_model_server(stack)}
    for node in stack.cluster.nodes:
        directory = node.directory / "config" / "certs.d" / UNREACHABLE
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "hosts.toml").write_text('server = "http://127.0.0.1:9"\n[host."http://127.0.0.1:9"]\n  capabilities = ["pull"]\n')
    stack.kube.run("taint", "node", "n2", "explain=fault:NoSchedule")
    namespaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"fault-{name}", "labels": dict(fault.labels)}}
        for name, fault in every.items()
    ]
    placed = [copy.deepcopy(each) for each in CLUSTER_WIDE]
    for name, fault in every.items():
        for each in copy.deepcopy(fault.objects):
            each["metadata"]["namespace"] = f"fault-{name}"
            placed.append(each)
    try:
        apply(stack.kube, namespaces)
        apply(stack.kube, placed)
        stack.kube.run("delete", "namespace", "fault-namespace-terminating", "--wait=false")
        stack.kube.run("delete", "pvc", "c", "-n", "fault-claim-leaving", "--wait=false")
        yield every
    finally:
        for held in (("configmap", "held", "-n", "fault-namespace-terminating"), ("pvc", "c", "-n", "fault-claim-leaving")):
            stack.kube.run("patch", *held, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False)
        stack.kube.run("taint", "node", "n2", "explain-", check=False)
        stack.kube.run("delete", "namespace", "--wait=false", *[f"fault-{name}" for name in every if name != "namespace-terminating"])
        stack.kube.run("delete", "storageclass", "fault-nobody", "fault-waits", check=False)
        stack.kube.run("delete", "runtimeclass", "fault-handler", check=False)


def test_at_least_twenty_faults_are_injected() -> None:
    assert len(FAULTS) >= 20


def test_every_fault_is_named_alone_and_with_its_remedy(stack: Stack, faults: dict[str, Fault]) -> None:
    def wrong() -> dict[str, list[str]]:
        """Faults whose findings are not the one expected, with what is said instead."""
        found: dict[str, list[str]] = {}
        for name, fault in faults.items():
            snapshot = look(stack, f"fault-{name}")
            findings = explain(snapshot)
            right = named(findings) == [(fault.cause, fault.subject)] and re.search(fault.says, str(findings[0]))
            if not right:
                found[name] = [f"{finding.cause} {finding}" for finding in findings]
            elif os.environ.get("UPDATE_SNAPSHOTS") in ("1", name):
                wanted = {"cause": fault.cause, "subject": fault.subject, "says": fault.says}
                document = {"wanted": [wanted], "snapshot": dataclasses.asdict(snapshot)}
                SNAPSHOTS.mkdir(exist_ok=True)
                (SNAPSHOTS / f"{name}.json").write_text(json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n")
        return found

    eventually(wrong, lambda found: not found, 120, "findings that are not the expected ones")


def test_a_fleet_that_is_well_is_said_to_be_ready(stack: Stack) -> None:
    eventually(
        lambda: named(explain(look(stack, stack.outputs.namespace, stack.key))), lambda found: not found, 30, "findings of the stack"
    )
    metrics = look(stack, stack.outputs.namespace, stack.key).metrics
    assert len(metrics) == stack.kube.get("deployment", "api-server", "-n", stack.outputs.namespace)["spec"]["replicas"]
    assert all("api_server_turns_total" in text for text in metrics.values())


def test_a_wrong_key_is_named(stack: Stack) -> None:
    findings = explain(look(stack, stack.outputs.namespace, "not-a-key-of-this-stack"))
    assert named(findings) == [("wrong-key", "api-server")]
    assert "got 401" in str(findings[0])


def test_a_namespace_that_is_not_there_is_named(stack: Stack) -> None:
    assert named(explain(look(stack, "nowhere"))) == [("namespace-missing", "Namespace/nowhere")]


def test_a_component_that_is_gone_is_named_and_not_what_needs_it(stack: Stack) -> None:
    namespace = stack.outputs.namespace
    text = stack.kube.run("get", "deployment", "cache-server", "-n", namespace, "-o", "yaml")
    stack.kube.run("delete", "deployment", "cache-server", "-n", namespace)
    try:
        eventually(
            lambda: named(explain(look(stack, namespace))),
            lambda found: found == [("component-missing", "Deployment/cache-server")],
            30,
            "findings without the cache server",
        )
    finally:
        stack.kube.run("apply", "-f", "-", stdin=text)
        stack.kube.run("rollout", "status", "deployment/cache-server", "-n", namespace, "--timeout=60s")


def test_the_command_prints_sentences_and_says_by_its_exit_status_whether_all_is_well(stack: Stack, faults: dict[str, Fault]) -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "infra.lifecycle", "explain", "--context", stack.deployment.context, *arguments]
        environment = os.environ | {"KUBECONFIG": stack.deployment.kubeconfig}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    well = run("--key-file", str(stack.deployment.key_file))
    assert (well.returncode, well.stdout) == (0, "everything is ready\n"), well.stdout + well.stderr
    ill = run("--namespace", "fault-secret-missing")
    assert ill.returncode == 1
    assert ill.stdout == "Secret/nope: got none, want it for Pod/p; create it, or correct its name in Pod/p\n"


def test_a_node_whose_kubelet_hangs_is_named(stack: Stack, faults: dict[str, Fault]) -> None:
    """Last in this file: its pods are unready meanwhile."""
    pid = processes.running_pid(stack.cluster, "kubelet-n2")
    assert pid is not None
    namespace = stack.outputs.namespace
    os.kill(pid, signal.SIGSTOP)
    try:
        findings = eventually(
            lambda: explain(look(stack, namespace)), lambda found: bool(found) and found[0].cause == "node-not-ready", 90, "node n2 named"
        )
        assert named(findings) == [("node-not-ready", "Node/n2")]
        assert "Kubelet stopped posting node status" in str(findings[0])
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: named(explain(look(stack, namespace, stack.key))), lambda found: not found, 60, "the node is back")
