"""One embedded cluster for the whole tier: its own name, addresses and state, removed at the end."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from devcluster import cluster as embedded
from devcluster.layout import Cluster, load, recorded
from devcluster.oci import Image
from infra.lifecycle import embedded as lifecycle
from infra.lifecycle.deployment import Deployment
from infra.lifecycle.target import Target
from infra.program.settings.committed import stack_config
from modelfleet_outputs import FleetOutputs
from tests import tiny_gguf
from tests.cluster.kube import Kube, eventually

NAME = f"test-{os.getpid()}"
"""Of this run alone: another one may be on the same machine."""
MODEL = "tiny:scripted"
SERVER_ID = "tiny-server"
ALIAS = "coder"
"""Another name of MODEL."""
SCRIPT = "Hello from the tiny model."


@dataclass
class _Here:
    """As much of a Target as those commands ask for."""

    stack: "Stack"

    def deployment(self) -> Deployment:
        return self.stack.deployment

    def kubectl(self) -> str:
        return str(self.stack.kube.kubectl)


@dataclass
class Stack:
    """The deployed dev stack."""

    cluster: Cluster
    deployment: Deployment
    overrides: dict[str, Any]
    images: dict[str, Image]
    outputs: FleetOutputs
    kube: Kube
    changed: bool = False
    """A module has left another stack than the first one; the next module sets it back, unless it begins with a deployment anyway."""
    had_tls: bool = False
    """Its API servers may speak TLS until they have ended."""

    @property
    def url(self) -> str:
        return f"http://{self.cluster.control_plane.address}:{self.outputs.node_port}"

    @property
    def key(self) -> str:
        return self.deployment.key_file.read_text()

    @property
    def target(self) -> Target:
        """The cluster, as commands have it that look at a stack."""
        return cast("Target", _Here(self))

    def wait_for_ends(self) -> None:
        """Until the pods of before are gone: nodes may lead a new connection to one that is about to end."""

        def ending() -> list[str]:
            items = self.kube.get("pods", "-n", self.outputs.namespace)["items"]
            return [item["metadata"]["name"] for item in items if "deletionTimestamp" in item["metadata"]]

        eventually(ending, lambda found: not found, 90, "pods that end")


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, dict[str, Image]]]:
    for left in recorded():
        prefix, _, owner = left.name.partition("-")
        if prefix == "test" and not Path("/proc", owner.partition("-")[0]).exists():
            embedded.down(left)
    gguf = tiny_gguf.make(tmp_path_factory.mktemp("models") / "tiny.gguf", SCRIPT)
    try:
        yield lifecycle.start_embedded(NAME, 2, {MODEL: gguf})
    finally:
        cluster = load(NAME)
        if cluster is not None:
            embedded.down(cluster)


@pytest.fixture(scope="session")
def kube(started: tuple[Cluster, dict[str, Image]]) -> Kube:
    return Kube(Path(embedded.binaries()) / "kubectl", started[0].kubeconfig)


@pytest.fixture(scope="session")
def first(started: tuple[Cluster, dict[str, Image]], kube: Kube) -> Stack:
    return deployed(*started, kube)


def deployed(cluster: Cluster, images: dict[str, Image], kube: Kube) -> Stack:
    """The dev stack with the tiny model."""
    deployment = lifecycle.on_embedded(cluster, "dev")
    overrides = {
        **lifecycle.image_overrides(images),
        "models": [{"name": MODEL, "size": "2Mi", "kvBytesPerToken": 1024}],
        "modelServers": [{**each, "model": MODEL, "modelId": SERVER_ID} for each in stack_config("dev")["modelfleet:modelServers"]],
        "aliases": {ALIAS: {"model": MODEL}},
    }
    return Stack(cluster, deployment, overrides, images, deployment.deploy(overrides), kube)


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, first: Stack) -> Stack:
    """The dev stack as it was deployed first. A module that deploys another one before its first test says so with `DEPLOYS_FIRST`."""
    if first.changed and (first.had_tls or not getattr(request.module, "DEPLOYS_FIRST", False)):
        first.deployment.deploy(first.overrides)
        if first.had_tls:
            first.wait_for_ends()
        first.changed = first.had_tls = False
    return first
