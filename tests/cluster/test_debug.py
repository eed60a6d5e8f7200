"""`make debug` on a real cluster: a further container in a pod of the dev stack, with no more rights than the pod has."""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from infra.lifecycle import looking
from tests.cluster.conftest import Stack
from tests.cluster.kube import eventually

pytestmark = pytest.mark.cluster
LOOK = "id -u; tr '\\0' ' ' < /proc/1/cmdline; grep CapEff /proc/self/status\n"


def pod(stack: Stack) -> dict[str, Any]:
    return stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", "app.kubernetes.io/name=api-server")["items"][0]


def running(stack: Stack, name: str) -> bool:
    """Whether the pod has an ephemeral container that runs."""
    statuses = stack.kube.get("pod", name, "-n", stack.outputs.namespace)["status"].get("ephemeralContainerStatuses", [])
    return any("running" in each["state"] for each in statuses)


def told(heard: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """All of standard output so far."""
    heard.append(capfd.readouterr().out)
    return "".join(heard)


def test_a_debug_container_sees_the_processes_of_the_pod_and_may_do_no_more(stack: Stack, capfd: pytest.CaptureFixture[str]) -> None:
    before = pod(stack)
    options = argparse.Namespace(command="debug", stack="dev", of="api-server", container="", image="")
    terminal, (reads, types) = os.dup(0), os.pipe()
    os.dup2(reads, 0)
    try:
        with ThreadPoolExecutor(1) as pool:
            looked = pool.submit(looking.debug, stack.target, options)
            eventually(lambda: running(stack, before["metadata"]["name"]), bool, 60, "the debug container runs")
            os.write(types, LOOK.encode())
            heard: list[str] = []
            said = eventually(lambda: told(heard, capfd), lambda found: "CapEff" in found, 60, "its answers")
            os.close(types)
            looked.result(60)
    finally:
        os.dup2(terminal, 0)
        for each in (terminal, reads):
            os.close(each)
    assert f"{before['spec']['securityContext']['runAsUser']}\n" in said
    assert "-m api_server" in said
    assert "CapEff:\t0000000000000000" in said
    after = pod(stack)
    assert [each["targetContainerName"] for each in after["spec"]["ephemeralContainers"]] == ["api-server"]
    started = [status["state"]["running"]["startedAt"] for each in (before, after) for status in each["status"]["containerStatuses"]]
    assert len(set(started)) == 1
    # Its pod goes, and it with it.
    stack.kube.run("delete", "pod", "-n", stack.outputs.namespace, after["metadata"]["name"])


def test_pod_security_refuses_one_with_more_rights(stack: Stack) -> None:
    found = pod(stack)
    where = ("-n", stack.outputs.namespace, found["metadata"]["name"], "--image", found["spec"]["containers"][0]["image"])
    assert 'violates PodSecurity "restricted' in stack.kube.refused("debug", *where, "--profile=sysadmin", "--", "true")
