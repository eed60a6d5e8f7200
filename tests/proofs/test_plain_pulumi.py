"""The commands of docs/pulumi.md, from a new clone, against a cluster: what Pulumi's own users do. Then `make up` on the same stack.

5 minutes. Needs the tools of `make up` in this machine's cache, which stand for the user's Pulumi.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import cluster as embedded
from devcluster.layout import load
from infra import ROOT
from infra.engine.binaries import own_pulumi
from infra.lifecycle import embedded as lifecycle
from infra.lifecycle.bring_up import chat
from infra.program.settings.committed import stack_config
from modelfleet_outputs import parse
from tests import tiny_gguf
from tests.proofs.records import CODE_BLOCK, Proof

PROOF = Proof(
    "plain-pulumi",
    guards=(
        *("docs/pulumi.md", "Pulumi.yaml", "Pulumi.dev.yaml", "requirements.txt", "requirements.lock", "__main__.py"),
        *("infra/engine", "infra/lifecycle", "infra/program", "components"),
    ),
)
NAME = f"test-{os.getpid()}-plain"
MODEL, SCRIPT = "tiny:scripted", "Hello from plain Pulumi."


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str], dict[str, Any], str]]:
    """A clone, the environment of a user with a Pulumi, what the stack is to be, and the address of a node."""
    clone, ours = tmp_path / "clone", own_pulumi()
    assert ours is not None, "the user's Pulumi is on the PATH"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    try:
        cluster, built = lifecycle.start_embedded(NAME, 1, {MODEL: tiny_gguf.make(tmp_path / "tiny.gguf", SCRIPT)})
        kubectl = embedded.binaries() / "kubectl"
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "kubectl").symlink_to(kubectl)
        environment = {
            "PATH": f"{ours.binaries}:{tmp_path / 'bin'}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "PULUMI_HOME": str(ours.home),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PULUMI_IGNORE_AMBIENT_PLUGINS": "true",
            "PULUMI_CREDENTIAL_STORE": "plaintext",
            "PULUMI_CONFIG_PASSPHRASE": "of a user",
            "KUBECONFIG": str(cluster.kubeconfig),
            "CONTEXT": cluster.context,
        }
        stack = {
            **lifecycle.image_overrides(built),
            "models": [{"name": MODEL, "size": "2Mi", "kvBytesPerToken": 1024}],
            "modelServers": [{**each, "model": MODEL, "modelId": "tiny-server"} for each in stack_config("dev")["modelfleet:modelServers"]],
        }
        yield clone, environment, stack, str(cluster.control_plane.address)
    finally:
        left = load(NAME)
        if left is not None:
            embedded.down(left)


def commands(backend: Path) -> list[str]:
    """Those of the page, for a backend of ours and without questions. The plugins are there: the vendor's server need not be reached."""
    (block,) = (block for block in CODE_BLOCK.findall((ROOT / "docs" / "pulumi.md").read_text()) if "pulumi up" in block)
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    lines[0] = re.sub(r"=\S+", f"=file://{backend}", lines[0])
    assert lines[-1] == "pulumi up"
    lines[lines.index("pulumi install")] = "pulumi install --no-plugins"
    return [*lines[:-1], "pulumi up --yes"]


def run(script: str, where: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(["bash", "-euc", script], cwd=where, env=dict(environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def nothing_of_others_is_taken(preview: str, up: str, where: Path, environment: Mapping[str, str]) -> None:
    """A namespace of the stack's name is there already, and not the stack's: both commands refuse it by name."""
    namespace = "modelfleet"
    run(f"kubectl create namespace {namespace}", where, environment)
    for command in (preview, up):
        done = subprocess.run(["bash", "-euc", command], cwd=where, env=dict(environment), capture_output=True, text=True)
        assert done.returncode != 0
        assert f"Namespace/{namespace}: got one that kubectl-create made, want none" in done.stdout + done.stderr
    left = run(f"kubectl get all,configmaps,secrets -n {namespace} -o name", where, environment).split()
    assert left == ["configmap/kube-root-ca.crt"]
    run(f"kubectl delete namespace {namespace} --timeout=60s", where, environment)


@pytest.mark.timeout(1800)
def test_a_clone_is_deployed_by_the_documented_commands_alone(
    place: tuple[Path, dict[str, str], dict[str, Any], str], figures: dict[str, Any], tmp_path: Path
) -> None:
    clone, environment, wanted, address = place
    (tmp_path / "backend").mkdir()
    export, *steps, up = commands(tmp_path / "backend")
    run("\n".join([export, *steps]), clone, environment)
    # What the page leaves to the user: images, storage and models.
    file = clone / "Pulumi.dev.yaml"
    stack = yaml.safe_load(file.read_text())
    for section, values in wanted.items():
        before = stack["config"].get(f"modelfleet:{section}", {})
        stack["config"][f"modelfleet:{section}"] = {**before, **values} if isinstance(values, dict) else values
    file.write_text(yaml.safe_dump(stack))
    nothing_of_others_is_taken(f"{export}\npulumi preview", f"{export}\n{up}", clone, environment)
    run(f"{export}\n{up}", clone, environment)
    outputs = parse(json.loads(run(f"{export}\npulumi stack output fleet --json", clone, environment)))
    key = json.loads(run(f"{export}\npulumi stack output apiKeys --json --show-secrets", clone, environment))[0]
    assert chat(f"http://{address}:{outputs.node_port}", key, MODEL, "Say it.") == SCRIPT
    assert key not in "".join(path.read_text(errors="replace") for path in (tmp_path / "backend").rglob("*") if path.is_file())

    # The same stack by make: nothing changes, nothing of it is written, and the answer comes.
    before = file.read_text()
    said = run(f"{export}\nmake -s up CONTEXT={environment['CONTEXT']} 2>&1", clone, environment)
    assert f"up: the state of stack dev is in file://{tmp_path / 'backend'}" in said
    assert f"{MODEL}: {SCRIPT}" in said
    assert not re.search(r"^pulumi: (\+|~|-)", said, re.MULTILINE), said
    assert file.read_text() == before
    said = run(f"{export}\nmake -s down CONTEXT={environment['CONTEXT']} YES=1 2>&1", clone, environment)
    assert "StatefulSet/ollama" in said
    figures["objects"] = len(re.findall(r"^  \w+/", said, re.MULTILINE))
