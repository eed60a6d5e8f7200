"""The cache server's password is changed while a client asks: no answer fails, and answers are kept again afterwards."""

import argparse
import threading
from typing import cast

import httpx
import pytest

from infra.lifecycle import keys
from infra.lifecycle.deployment import Deployment
from infra.lifecycle.target import Target
from tests.cluster.conftest import MODEL, SERVER_ID, Stack
from tests.cluster.kube import eventually
from tests.cluster.test_stack import BODY, ask

pytestmark = pytest.mark.cluster


class Here:
    """The cluster of the tests, as a command's target."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def deployment(self) -> Deployment:
        return self._stack.deployment


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
    before, failed, ended = secret(stack), [], threading.Event()

    def load() -> None:
        while not ended.is_set():
            try:
                response = ask(stack, MODEL)
            except httpx.HTTPError as error:
                failed.append(repr(error))
            else:
                failed.extend([response.text] if response.status_code != 200 else [])

    client = threading.Thread(target=load)
    client.start()
    try:
        keys.rotate_cache_password(cast("Target", Here(stack)), argparse.Namespace(command="cache-password"))
        found = eventually(lambda: kept(stack), lambda said: said[-1] == "hit", 120, "an answer is kept again")
    finally:
        ended.set()
        client.join()
    assert found[-1] == "hit"
    assert failed == []
    assert secret(stack) != before
