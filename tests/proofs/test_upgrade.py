"""The first release's dev stack on a real cluster, made from its kept state, is upgraded by today's program without loss. About 5 minutes.

The state was kept from a rendering. What differs on a cluster is put in: where the cluster is, and where its images are.
"""

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import cluster as embedded
from devcluster.layout import load
from devcluster.oci import Image
from infra.lifecycle import embedded as lifecycle
from infra.lifecycle.bring_up import QUESTION, chat
from infra.lifecycle.deployment import Deployment
from tests.cluster.kube import Kube
from tests.golden.releases import Release
from tests.golden.test_upgrade import lines
from tests.proofs.records import Proof
from tests.proofs.unwrapped import plain

PROOF = Proof(
    "upgrade",
    guards=(
        *("infra", "components", "devcluster", "images", "model_sync", "ollama_agent", "model_server", "api_server"),
        *("Pulumi.dev.yaml", "requirements.lock", "tools/pulumi", "tools/pulumi-resource-kubernetes"),
        *("tests/golden/releases", "tests/golden/releases.py"),
    ),
)
FIRST = Release(1, "dev")
NAME = f"test-{os.getpid()}-upgrade"
KEY, PASSWORD = "masked-in-the-rendering", "maskedintherendering"
"""The secrets in the kept state."""


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Deployment, dict[str, Image], Kube]]:
    try:
        cluster, images = lifecycle.start_embedded(NAME, 2)
        kube = Kube(Path(embedded.binaries()) / "kubectl", cluster.kubeconfig)
        yield lifecycle.on_embedded(cluster, FIRST.stack), images, kube
    finally:
        cluster = load(NAME)
        if cluster is not None:
            embedded.down(cluster)


def released_state(deployment: Deployment, images: dict[str, Image]) -> dict[str, Any]:
    """The first release's state as a deployment to this cluster would have left it."""
    text = json.dumps(FIRST.state("/nowhere"))
    for name, image in images.items():
        text = text.replace(f"modelfleet/{name}@sha256:{'0' * 64}", image.reference)
    state = json.loads(text)
    cluster = deployment.cli.read_config()["modelfleet:cluster"]
    for resource in state["deployment"]["resources"]:
        if resource["type"] == "pulumi:providers:kubernetes":
            where = {"context": cluster["context"], "clusterIdentifier": cluster["identity"], "version": resource["inputs"]["version"]}
            resource |= {"inputs": {"__internal": {}, **where}, "outputs": where, "propertyDependencies": {}}
    salt = yaml.safe_load(deployment.cli.config_file.read_text())["encryptionsalt"]
    state["deployment"]["secrets_providers"] = {"type": "passphrase", "state": {"salt": salt}}
    return state


def apply(kube: Kube, state: dict[str, Any]) -> None:
    """Make every object as the first release's program did: in the order of the state, each by its own field manager."""
    for resource in state["deployment"]["resources"]:
        if resource["type"].startswith("kubernetes:"):
            manager = resource["outputs"]["__fieldManager"]
            kube.run("apply", "--server-side", f"--field-manager={manager}", "-f", "-", stdin=json.dumps(plain(resource["inputs"])))


def held(deployment: Deployment, kube: Kube) -> dict[str, Any]:
    """What an upgrade must not lose: claims and their volumes, models by digest, secrets."""
    namespace = deployment.namespace
    claims = {item["metadata"]["name"]: item for item in kube.get("pvc", "-n", namespace)["items"]}
    secrets = {item["metadata"]["name"]: item["data"] for item in kube.get("secrets", "-n", namespace)["items"] if item.get("data")}
    cluster = load(NAME)
    assert cluster is not None
    blobs = sorted(cluster.shared_dir.rglob("blobs/sha256-*"))
    return {
        "claims": {name: (item["metadata"]["uid"], item["spec"]["volumeName"]) for name, item in claims.items()},
        "secrets": secrets,
        "blobs": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in blobs},
        "namespace": kube.get("namespace", namespace)["metadata"]["uid"],
    }


def asked(url: str, model: str) -> str:
    return chat(url, KEY, model, QUESTION)


@pytest.mark.timeout(1200)
def test_the_first_release_is_upgraded_without_loss(place: tuple[Deployment, dict[str, Image], Kube], figures: dict[str, Any]) -> None:
    deployment, images, kube = place
    cli = deployment.cli
    cli.ensure_stack()
    cli.write_config({})
    cli.run("config", "set", "--secret", "modelfleet:apiKeys", stdin=json.dumps([KEY]))
    cli.run("config", "set", "--secret", "modelfleet:cachePassword", stdin=PASSWORD)
    overrides = lifecycle.image_overrides(images)
    deployment.configure(overrides)
    state = released_state(deployment, images)
    apply(kube, state)
    for kind in ("statefulset", "deployment"):
        for item in kube.get(kind, "-n", deployment.namespace)["items"]:
            kube.run("rollout", "status", f"{kind}/{item['metadata']['name']}", "-n", deployment.namespace, "--timeout=110s")
    cli.run("stack", "import", stdin=json.dumps(state))
    cluster = load(NAME)
    assert cluster is not None
    outputs = deployment.outputs()
    url = f"http://{cluster.control_plane.address}:{outputs.node_port}"
    assert "Paris" in asked(url, outputs.models[0].id), "the first release answers"
    before = held(deployment, kube)
    assert before["blobs"], "the model store is looked at where it is"

    plan = cli.preview(refresh=True)
    started = time.monotonic()
    after = deployment.deploy(overrides)
    figures["upgrade_s"] = round(time.monotonic() - started, 1)
    figures["changes"] = lines(plan)

    now = held(deployment, kube)
    # Prometheus' claim comes to them.
    assert before["claims"].items() <= now["claims"].items()
    assert now["namespace"] == before["namespace"]
    assert before["blobs"].items() <= now["blobs"].items()
    # The first release had the keys themselves in the cluster, where hashes are now: that the old key still opens the door is asked below.
    kept = {name: data for name, data in before["secrets"].items() if not name.startswith("api-server-keys")}
    assert len(kept) == len(before["secrets"]) - 1
    assert kept.items() <= now["secrets"].items()
    assert not [data for data in now["secrets"]["api-server-keys"].values() if KEY.encode() in base64.b64decode(data)]
    assert {model.id for model in outputs.models} <= {model.id for model in after.models}
    assert (after.url, after.node_port, after.namespace) == (outputs.url, outputs.node_port, outputs.namespace)
    assert "Paris" in asked(url, outputs.models[0].id), "the same key, after the upgrade"
