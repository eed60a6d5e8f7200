"""examples/components on the real cluster: another team's door, in its own namespace, in front of a model server that runs already."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.engine.cli import PulumiCli
from tests import wheel
from tests.cluster.conftest import SCRIPT, SERVER_ID, Stack

pytestmark = pytest.mark.cluster
KEY = "a-key-that-is-long-enough"
ASK = """
import json, sys, urllib.error, urllib.request
body = {"model": sys.argv[2], "messages": [{"role": "user", "content": "Say it."}], "temperature": 0}
headers = {"Authorization": f"Bearer {sys.argv[1]}", "Content-Type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", json.dumps(body).encode(), headers)
try:
    print(urllib.request.urlopen(request, timeout=30).read().decode())
except urllib.error.HTTPError as error:
    print(json.dumps({"status": error.code}))
"""
"""Runs in a pod of the door's, which has Python and reaches itself."""


@pytest.fixture
def admitted(stack: Stack) -> Iterator[None]:
    """What the example asks of the model server's owner: a policy that lets the door's namespace in."""
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "door", "namespace": stack.outputs.namespace},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "model-server"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "door"}}}],
                    "ports": [{"port": 8080, "protocol": "TCP"}],
                }
            ],
        },
    }
    stack.kube.run("apply", "-f", "-", stdin=json.dumps(policy))
    yield
    stack.kube.run("delete", "networkpolicy", "door", "-n", stack.outputs.namespace)


@pytest.fixture
def door(stack: Stack, admitted: None, tmp_path: Path) -> Iterator[PulumiCli]:
    wheel.install(wheel.build("components", tmp_path), tmp_path / "installed")
    cli = PulumiCli(
        stack="prod",
        state_dir=tmp_path / "stack",
        program=wheel.ROOT / "examples" / "components",
        env={"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "installed"), "KUBECONFIG": stack.deployment.kubeconfig},
    )
    cli.ensure_stack()
    config = {
        "image": stack.images["api-server"].reference,
        "model": SERVER_ID,
        "server": "model-server",
        "serverPort": "8080",
        "serverNamespace": stack.outputs.namespace,
        "serverLabels": {"app.kubernetes.io/name": "model-server"},
        "context": stack.deployment.context,
    }
    cli.write_config({f"door:{key}": value for key, value in config.items()})
    cli.run("config", "set", "--secret", "door:apiKeys", stdin=json.dumps([KEY]))
    yield cli
    cli.destroy()


def test_another_teams_door_leads_to_the_model_server_and_asks_for_its_key(stack: Stack, door: PulumiCli) -> None:
    door.up()
    pods = stack.kube.get("pods", "-n", "door")["items"]
    assert len(pods) == 2
    for pod in pods:
        name = pod["metadata"]["name"]
        answer = json.loads(stack.kube.exec("door", name, "python", "-c", ASK, KEY, SERVER_ID).stdout)
        assert answer["choices"][0]["message"]["content"].strip() == SCRIPT
        assert json.loads(stack.kube.exec("door", name, "python", "-c", ASK, "another-key-of-nobody", SERVER_ID).stdout) == {"status": 401}
    door.up(expect_no_changes=True)
