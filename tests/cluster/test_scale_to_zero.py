"""The fleet at zero on a real cluster: a request waits, the activator brings the fleet up, and idle time takes it down."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from components.contract import ACTIVATOR, API_METRICS_PORT, API_SERVER, CONTEXT_PROBE
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.kube import eventually
from tests.cluster.test_network import DEPLOYED, agrees_with_the_table, standing

pytestmark = pytest.mark.cluster
DEPLOYS_FIRST = True


def replicas(stack: Stack) -> int:
    return stack.kube.get("statefulset", "ollama", "-n", stack.outputs.namespace)["spec"]["replicas"]


@pytest.fixture(scope="module")
def scaled(stack: Stack) -> Stack:
    """The stack with an activator, and the fleet at zero."""
    api = f"{stack.cluster.control_plane.address}/32"
    fleet = {"replicas": 2, "scaleToZero": {"idleMinutes": 1, "keepCopies": False, "kubernetesCidrs": [api]}}
    stack.deployment.deploy({**stack.overrides, "fleet": fleet})
    stack.changed = True
    return stack


@pytest.fixture(scope="module", autouse=True)
def before(scaled: Stack) -> str:
    """The node of the first replica, read before the fleet is idle."""
    return node_of_the_first(scaled)


def node_of_the_first(stack: Stack) -> str:
    return stack.kube.get("pod", "ollama-0", "-n", stack.outputs.namespace)["spec"]["nodeName"]


@contextmanager
def lost(stack: Stack, node: str) -> Iterator[None]:
    """As far as pods are concerned, until the block ends."""
    stack.kube.run("cordon", node)
    try:
        yield
    finally:
        stack.kube.run("uncordon", node)


def test_every_pair_of_pods_is_as_the_table_says_with_an_activator_too(scaled: Stack) -> None:
    """Meanwhile the fleet stays: a stand-in of an API server says no demand, so the activator does not know enough."""
    # Nobody probes contexts where the activator may have taken the replicas away.
    components = tuple(component for component in (*DEPLOYED, ACTIVATOR) if component != CONTEXT_PROBE)
    with standing(scaled, components) as probes:
        made = agrees_with_the_table(scaled, probes, components)
    assert {each for each in made if ACTIVATOR in each} == {
        (ACTIVATOR, API_SERVER, API_METRICS_PORT),
        (ACTIVATOR, "kube-apiserver", 6443),
        (ACTIVATOR, "kube-dns", 53),
    }


def test_the_activator_may_do_nothing_else(scaled: Stack) -> None:
    namespace = scaled.outputs.namespace
    account = f"--as=system:serviceaccount:{namespace}:activator"
    can = lambda *what: scaled.kube.run("auth", "can-i", *what, "-n", namespace, account, check=False).strip()  # noqa: E731
    assert can("patch", "statefulsets/ollama", "--subresource=scale") == "yes"
    for verb, what in (
        ("patch", "statefulsets/ollama"),
        ("delete", "statefulsets/ollama"),
        ("get", "secrets"),
        ("list", "pods"),
        ("create", "pods"),
    ):
        assert can(verb, what) == "no", f"{verb} {what}"
    assert can("patch", "statefulsets/other", "--subresource=scale") == "no"


def test_an_idle_fleet_goes_to_zero_and_a_streamed_request_brings_it_back_elsewhere(scaled: Stack, before: str) -> None:
    """Last but one in this file: the minute without a request goes by while the others look."""
    eventually(lambda: replicas(scaled), lambda count: count == 0, 120, "replicas of an idle fleet")
    gone = lambda: scaled.kube.get("pods", "-n", scaled.outputs.namespace, "-l", "app.kubernetes.io/name=ollama")["items"]  # noqa: E731
    eventually(gone, lambda items: items == [], 90, "pods of an idle fleet")
    # A copy would hold the replica to its node. The next start makes another one, wherever there is room.
    claims = lambda: [each["metadata"]["name"] for each in scaled.kube.get("pvc", "-n", scaled.outputs.namespace)["items"]]  # noqa: E731
    wanted = ["models-model-server-0", "prometheus", "shared-models"]
    eventually(claims, lambda names: names == wanted, 60, "no copy of an idle fleet, and that of the model server, which runs")
    assert scaled.deployment.findings() == [], "at zero all is well"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say it."}], "stream": True, "max_tokens": 64}
    with lost(scaled, before):
        started = time.monotonic()
        response = httpx.post(
            f"{scaled.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {scaled.key}"}, timeout=180
        )  # fmt: skip
        print(f"first answer from zero after {time.monotonic() - started:.1f} s")
        assert node_of_the_first(scaled) != before
    assert response.status_code == 200, response.text
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]) == SCRIPT
    assert replicas(scaled) == 1, "as many as one conversation needs"


def test_the_stack_leaves_the_number_to_the_activator(scaled: Stack) -> None:
    scaled.deployment.cli.preview(expect_no_changes=True)
