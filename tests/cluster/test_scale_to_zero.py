"""Servers at zero on a real cluster: a request waits, the activator brings them up, and idle time takes them down."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from components.contract import ACTIVATOR, API_METRICS_PORT, API_SERVER, CONTEXT_PROBE, MODEL_SERVER, OLLAMA
from tests.cluster.conftest import MODEL, SCRIPT, SERVER_ID, Stack
from tests.cluster.kube import eventually
from tests.cluster.test_network import DEPLOYED, agrees_with_the_table, standing

pytestmark = pytest.mark.cluster
DEPLOYS_FIRST = True


def replicas(stack: Stack, name: str = OLLAMA) -> int:
    return stack.kube.get("statefulset", name, "-n", stack.outputs.namespace)["spec"]["replicas"]


def pods_of(stack: Stack, name: str) -> list[str]:
    items = stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", f"app.kubernetes.io/name={name}")["items"]
    return [item["metadata"]["name"] for item in items]


def streamed(stack: Stack, model: str) -> str:
    """The text of an answer that was asked for while no server was there."""
    body = {"model": model, "messages": [{"role": "user", "content": "Say it."}], "stream": True, "max_tokens": 64}
    headers, began = {"Authorization": f"Bearer {stack.key}"}, time.monotonic()
    response = httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=180)
    print(f"first answer of {model} from zero after {time.monotonic() - began:.1f} s")
    assert response.status_code == 200, response.text
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    # What ends a stream with its usage has no choice.
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.fixture(scope="module")
def scaled(stack: Stack) -> Stack:
    """The stack with an activator, under which the fleet and the model server go to zero."""
    api = f"{stack.cluster.control_plane.address}/32"
    fleet = {"replicas": 2, "scaleToZero": {"idleMinutes": 1, "keepCopies": False, "kubernetesCidrs": [api]}}
    servers = [{**each, "scale": {"min": 0, "idleMinutes": 1, "kubernetesCidrs": [api]}} for each in stack.overrides["modelServers"]]
    stack.deployment.deploy({**stack.overrides, "fleet": fleet, "modelServers": servers})
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
    for servers in (OLLAMA, MODEL_SERVER):
        assert can("patch", f"statefulsets/{servers}", "--subresource=scale") == "yes"
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
    eventually(lambda: pods_of(scaled, OLLAMA), lambda found: found == [], 90, "pods of an idle fleet")
    # A copy would hold the replica to its node. The next start makes another one, wherever there is room.
    claims = lambda: [each["metadata"]["name"] for each in scaled.kube.get("pvc", "-n", scaled.outputs.namespace)["items"]]  # noqa: E731
    wanted = ["models-model-server-0", "prometheus", "shared-models"]
    eventually(claims, lambda names: names == wanted, 60, "no copy of an idle fleet, and that of the model server, which keeps it")
    eventually(lambda: pods_of(scaled, MODEL_SERVER), lambda found: found == [], 240, "pods of an idle model server")
    assert replicas(scaled, MODEL_SERVER) == 0
    assert scaled.deployment.findings() == [], "at zero all is well"
    with lost(scaled, before):
        assert streamed(scaled, MODEL) == SCRIPT
        assert node_of_the_first(scaled) != before
    assert replicas(scaled) == 1, "as many as one conversation needs"
    assert replicas(scaled, MODEL_SERVER) == 0, "nobody asked it"


def test_a_model_server_comes_from_zero_for_a_request_and_goes_again(scaled: Stack) -> None:
    assert streamed(scaled, SERVER_ID) == SCRIPT
    assert replicas(scaled, MODEL_SERVER) == 1
    assert pods_of(scaled, MODEL_SERVER) == [f"{MODEL_SERVER}-0"]
    eventually(lambda: replicas(scaled, MODEL_SERVER), lambda count: count == 0, 240, "replicas of an idle model server")


def test_the_stack_leaves_the_number_to_the_activator(scaled: Stack) -> None:
    scaled.deployment.cli.preview(expect_no_changes=True)
