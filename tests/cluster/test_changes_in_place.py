"""An alias is pointed at another model, a key is made and taken back, and no pod is made again for it."""

import base64

import httpx
import pytest

from components.contract import API_SERVER
from infra.lifecycle import keys
from tests.cluster.conftest import ALIAS, MODEL, SCRIPT, SERVER_ID, Stack
from tests.cluster.kube import eventually

pytestmark = pytest.mark.cluster
KUBELET_S = 150
"""A kubelet looks at the files of its pods about once a minute."""
TOUCHED_S = 5
"""And at once when a pod was touched."""


def answered(stack: Stack) -> tuple[str, str]:
    """What the alias answers, and the model that did."""
    body = {"model": ALIAS, "messages": [{"role": "user", "content": "Say it."}], "max_tokens": 64, "temperature": 0}
    headers = {"Authorization": f"Bearer {stack.key}"}
    answer = httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=60).json()
    return answer["choices"][0]["message"]["content"], answer["model"]


def pods(stack: Stack) -> dict[str, int]:
    """UID of each running pod to how often its containers were restarted; without those that are about to end."""
    items = stack.kube.get("pods", "-n", stack.outputs.namespace, "--field-selector=status.phase=Running")["items"]
    items = [item for item in items if "deletionTimestamp" not in item["metadata"]]
    return {item["metadata"]["uid"]: sum(each["restartCount"] for each in item["status"]["containerStatuses"]) for item in items}


def test_an_alias_is_pointed_elsewhere_and_no_pod_is_made_again(stack: Stack) -> None:
    assert answered(stack) == (SCRIPT, MODEL)
    before = pods(stack)
    changed = stack.deployment.deploy({**stack.overrides, "aliases": {ALIAS: {"model": SERVER_ID}}})
    stack.changed = True
    assert (stack.outputs.aliases, changed.aliases) == ({ALIAS: MODEL}, {ALIAS: SERVER_ID})
    stack.kube.touch(stack.outputs.namespace, API_SERVER)
    assert eventually(lambda: answered(stack), lambda found: found[1] != MODEL, KUBELET_S, "an answer of the other model") == (
        SCRIPT,
        SERVER_ID,
    )
    assert pods(stack) == before


def status(stack: Stack, key: str) -> int:
    return httpx.get(f"{stack.url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=10).status_code


def test_a_key_is_made_and_taken_back_within_seconds_and_no_pod_is_made_again(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    before = pods(stack)
    # What else is to change goes with the key: the aliases are those of before again.
    stack.deployment.configure(stack.overrides)
    keys.change(stack.deployment, "alice", revoke=False)
    key = next(line.removeprefix("alice: ") for line in capsys.readouterr().out.splitlines() if line.startswith("alice: "))
    # Two API servers, each with a file of its own.
    eventually(lambda: [status(stack, key) for _ in range(8)], lambda found: set(found) == {200}, TOUCHED_S, "the new key")
    keys.change(stack.deployment, "alice", revoke=True)
    eventually(lambda: [status(stack, key) for _ in range(8)], lambda found: set(found) == {401}, TOUCHED_S, "the revoked key")
    assert status(stack, stack.key) == 200
    assert pods(stack) == before
    stack.changed = False
    secret = stack.kube.get("secret", "api-server-keys", "-n", stack.outputs.namespace)
    assert key not in base64.b64decode(secret["data"]["keys"]).decode()
