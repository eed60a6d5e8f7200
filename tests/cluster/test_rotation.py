"""Secrets are changed while agents work, and no turn fails: the cache server's password, a client's key, the login of a registry."""

import argparse
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self, cast

import httpx
import pytest

from devcluster import cluster as embedded
from devcluster import oci
from images.embedded import runtime_config
from infra.lifecycle import keys
from infra.lifecycle.bring_up import bring_up
from tests.cluster.conftest import MODEL, SERVER_ID, Stack
from tests.cluster.kube import eventually
from tests.cluster.test_changes_in_place import TOUCHED_S, status
from tests.cluster.test_private_registry import reached_by_nodes
from tests.cluster.test_stack import BODY
from tests.service.private_registry import LATER_PASSWORD, PASSWORD, USER, PrivateRegistry

pytestmark = pytest.mark.cluster
EXPORTER = "metrics-exporter"


class Agent:
    """Asks for turn after turn with one key, until the block ends. `turns` has when each began, and its status or what failed."""

    def __init__(self, stack: Stack, key: str) -> None:
        self._url, self._key = stack.url, key
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.turns: list[tuple[float, int | str]] = []

    def _work(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        while not self._ended.wait(0.05):
            began, found = time.monotonic(), cast("int | str", 0)
            try:
                found = httpx.post(
                    f"{self._url}/v1/chat/completions", json={**BODY, "model": MODEL}, headers=headers, timeout=60
                ).status_code
            except httpx.HTTPError as error:
                found = repr(error)
            self.turns.append((began, found))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def statuses(self, since: float = 0, until: float = float("inf")) -> set[int | str]:
        """Of turns that began in that time."""
        return {found for began, found in self.turns if since <= began < until}

    def goes_on(self, what: str) -> None:
        """Wait for three more turns."""
        before = len(self.turns)
        eventually(lambda: len(self.turns), lambda count: count >= before + 3, 120, what)


def kept(stack: Stack) -> list[str]:
    """What the cache says of the same question twice."""
    headers = {"Authorization": f"Bearer {stack.key}", "X-Cache": "exact"}
    body = {**BODY, "model": SERVER_ID, "seed": 11}
    answers = [httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=60) for _ in range(2)]
    return [each.headers.get("x-cache", str(each.status_code)) for each in answers]


def secret(stack: Stack) -> str:
    """The name of the Secret that the cache server reads."""
    pod = stack.kube.get("deployment", "cache-server", "-n", stack.outputs.namespace)["spec"]["template"]["spec"]
    return next(each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each and "auth" in each["secret"]["secretName"])


def test_the_password_of_the_cache_server_is_changed_under_load(stack: Stack) -> None:
    before = secret(stack)
    with Agent(stack, stack.key) as agent:
        keys.rotate_cache_password(stack.target, argparse.Namespace(command="cache-password"))
        found = eventually(lambda: kept(stack), lambda said: said[-1] == "hit", 120, "an answer is kept again")
    assert found[-1] == "hit"
    assert agent.statuses() == {200}
    assert secret(stack) != before


def made(stack: Stack, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """A new key, once each API server takes it."""
    capsys.readouterr()
    keys.change(stack.deployment, name, revoke=False)
    key = next(line.removeprefix(f"{name}: ") for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name}: "))
    eventually(lambda: [status(stack, key) for _ in range(8)], lambda found: set(found) == {200}, TOUCHED_S, f"the key of {name}")
    return key


def test_a_clients_key_is_changed_under_load(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """A second key, agents that move to it, and the first one is revoked: it is refused within seconds, and nobody else notices."""
    old = made(stack, "before", capsys)
    with Agent(stack, stack.key) as other, Agent(stack, old) as leaves:
        new = made(stack, "after", capsys)
        with Agent(stack, new) as comes:
            comes.goes_on("turns with the new key")
            revoking = time.monotonic()
            keys.change(stack.deployment, "before", revoke=True)
            eventually(lambda: [status(stack, old) for _ in range(8)], lambda found: set(found) == {401}, TOUCHED_S, "the revoked key")
            eventually(lambda: leaves.turns[-1][1], lambda found: found == 401, 60, "a turn with the revoked key")
            comes.goes_on("turns with the new key after the old one")
            other.goes_on("turns of others")
    assert (other.statuses(), comes.statuses()) == ({200}, {200})
    assert leaves.statuses(until=revoking) == {200}
    assert leaves.statuses(since=revoking) <= {200, 401}
    keys.change(stack.deployment, "after", revoke=True)


@pytest.fixture
def registry(stack: Stack, tmp_path: Path) -> Iterator[PrivateRegistry]:
    with reached_by_nodes(stack, tmp_path) as found:
        yield found


@pytest.fixture
def without_login(stack: Stack) -> Iterator[None]:
    """Afterwards the stack has no login again, and is as it was."""
    stack.changed = True
    yield
    stack.deployment.cli.run("config", "rm", "modelfleet:registryAuth")
    stack.deployment.deploy(stack.overrides)
    stack.changed = False


def exporter_of(stack: Stack, registry: PrivateRegistry, label: str) -> dict[str, Any]:
    """What the stack is changed by to have another image of the exporter, which is in the private registry as far as nodes know."""
    image = stack.images[EXPORTER]
    config = dataclasses.replace(runtime_config(EXPORTER), labels={"edited": label})
    edited = oci.assemble(image.name, image.layers, config)
    embedded.push(stack.cluster, [edited])
    overrides = json.loads(json.dumps(stack.overrides))
    overrides["images"]["refs"][EXPORTER] = f"{registry.address}/{oci.repository(edited.name)}@{edited.digest}"
    return overrides


def pods(stack: Stack) -> dict[str, str]:
    """UID to component, without those that are about to end."""
    items = [item["metadata"] for item in stack.kube.get("pods", "-n", stack.outputs.namespace)["items"]]
    return {item["uid"]: item["labels"]["app.kubernetes.io/name"] for item in items if "deletionTimestamp" not in item}


def test_the_login_of_a_registry_is_changed_under_load(
    stack: Stack, registry: PrivateRegistry, without_login: None, tmp_path: Path
) -> None:
    """As `make up PULL_AUTH=file` does it. An image that no node has is pulled with the new login; the old one opens nothing any more."""

    def up(password: str, label: str) -> None:
        file = tmp_path / "auth.json"
        file.write_text(registry.auth(password))
        options = argparse.Namespace(take="", registry_auth=str(file), allow_data_loss="")
        bring_up(stack.deployment, exporter_of(stack, registry, label), options, lambda _: nullcontext(stack.url), forwarded=False)

    up(PASSWORD, "before")
    stack.wait_for_ends()
    before = pods(stack)
    with Agent(stack, stack.key) as agent:
        agent.goes_on("turns")
        registry.change_password(LATER_PASSWORD)
        up(LATER_PASSWORD, "after")
        agent.goes_on("turns with the new login")
        after = eventually(lambda: pods(stack), lambda now: len(now) == len(before), 60, "as many pods as before")
    assert agent.statuses() == {200}
    assert {before[uid] for uid in before.keys() - after.keys()} == {EXPORTER}, "a new login replaces no pod"
    (exporter,) = stack.kube.get("pods", "-n", stack.outputs.namespace, "-l", f"app.kubernetes.io/name={EXPORTER}")["items"]
    assert exporter["status"]["containerStatuses"][0]["ready"]
    assert exporter["spec"]["containers"][0]["image"].startswith(registry.address)
    answers = [
        httpx.get(f"http://{registry.address}/v2/", auth=(USER, password), trust_env=False) for password in (PASSWORD, LATER_PASSWORD)
    ]
    assert [answer.status_code for answer in answers] == [401, 200]
