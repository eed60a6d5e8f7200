"""The end of models, of the stack and of the cluster. Runs last: the other tests need all three."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from devcluster import cgroups
from devcluster import cluster as embedded
from devcluster.layout import Cluster, default_name, load
from infra.engine.changes import DataLossError
from infra.engine.errors import CliError
from infra.program.settings.committed import stack_config
from tests.cluster.conftest import Stack
from tests.cluster.interruptions import at, finish, killed
from tests.cluster.kube import eventually

pytestmark = pytest.mark.cluster


def ours(cluster: Cluster) -> list[str]:
    """Everything on the machine that bears the cluster's marks: mounts, links, namespaces, cgroups, processes."""
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"/clusters/{cluster.name}/" in line]
    found += [name for name in os.listdir("/sys/class/net") if name.startswith(f"mf{cluster.slot}-")]
    if Path("/run/netns").exists():
        found += [name for name in os.listdir("/run/netns") if name.startswith(f"mf{cluster.slot}-")]
    for hierarchy in cgroups.hierarchies():
        found += [str(path) for path in hierarchy.glob(f"{cluster.cgroup_prefix}n[0-9]")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"/clusters/{cluster.name}/" in command:
            found.append(command)
    return found


LARGER = {"storage": {"hot": {"provisioner": "modelfleet.dev/local", "size": "3Gi"}}}


def servers(stack: Stack, **changes: int) -> list[dict[str, Any]]:
    """Model servers whose own claims keep their size."""
    size = stack_config("dev")["modelfleet:storage"]["hot"]["size"]
    return [{**each, "localSize": size, **changes} for each in stack.overrides["modelServers"]]


def test_an_update_that_would_lose_data_is_refused_before_anything_changes(stack: Stack) -> None:
    cli = stack.deployment.cli
    before = cli.run("stack", "export")
    overrides = {**stack.overrides, **LARGER, "modelServers": servers(stack)}
    with pytest.raises(DataLossError, match=r"^StatefulSet/ollama: got a change that deletes it and its replicas' volumes"):
        stack.deployment.deploy(overrides)
    assert json.loads(cli.run("stack", "export"))["deployment"]["resources"] == json.loads(before)["deployment"]["resources"]
    old = stack.kube.get("pvc", "models-ollama-0", "-n", stack.outputs.namespace)["metadata"]["uid"]
    stack.deployment.deploy(overrides, ["StatefulSet/ollama"])
    new = stack.kube.get("pvc", "models-ollama-0", "-n", stack.outputs.namespace)
    assert new["metadata"]["uid"] != old
    assert new["spec"]["resources"]["requests"]["storage"] == "3Gi"
    assert cli.preview().steps == []


def test_an_update_ends_at_once_with_a_cause_that_no_waiting_takes_away(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """The shared claim was marked for deletion: it goes when its last pod does, and no new pod may use it."""
    stack.kube.run("delete", "pvc", "shared-models", "-n", stack.outputs.namespace, "--wait=false")
    overrides = {**stack.overrides, **LARGER, "modelServers": servers(stack, parallel=1)}
    started = time.monotonic()
    with pytest.raises(CliError, match=r"PersistentVolumeClaim/shared-models: got a mark for deletion, which waits for pods .*; copy what"):
        # The replicas' volumes have that size already, unless this test runs by itself.
        stack.deployment.deploy(overrides, ["StatefulSet/ollama"])
    assert time.monotonic() - started < 120
    assert "waiting: PersistentVolumeClaim/shared-models: got a mark for deletion" in capsys.readouterr().err


def test_destroy_leaves_nothing_in_the_cluster(stack: Stack) -> None:
    stack.deployment.destroy()
    namespaces = [item["metadata"]["name"] for item in stack.kube.get("namespaces")["items"]]
    assert stack.outputs.namespace not in namespaces
    left = eventually(lambda: stack.kube.get("persistentvolumes")["items"], lambda items: not items, 60, "volumes are deleted")
    assert left == []


KILLED_AT = ("", "storage-claim", "ollama-servers")
"""Resources whose creation is cut off, in their order: the preview before the update, what holds data, what waits. The proof has more."""


def test_an_up_that_was_killed_at_three_points_is_finished_by_the_next(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """From nothing."""
    if stack.deployment.objects():
        stack.deployment.destroy()
    pending = [killed(stack, at(stack, name)) for name in KILLED_AT]
    assert None not in pending, f"an update ended before its point: {pending}"
    assert any(pending), "no creation was cut off"
    finish(stack)
    assert "replaced (" not in capsys.readouterr().err, "what was made before the kill is kept"


def test_down_leaves_nothing_on_the_machine_and_other_clusters_alone(stack: Stack) -> None:
    """With a stack in it, as `make down` finds it."""
    other = load(default_name())
    before = ours(other) if other is not None else []
    assert ours(stack.cluster), "the marks are there while the cluster is up, or this test sees nothing"
    embedded.down(stack.cluster)
    assert ours(stack.cluster) == []
    assert not stack.cluster.state_dir.exists()
    assert set(before) <= set(ours(other) if other is not None else [])
