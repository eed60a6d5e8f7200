"""The end of the stack and of the cluster. Runs last: the other tests need both."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from devcluster import cgroups
from devcluster import cluster as embedded
from devcluster.layout import Cluster, default_name, load
from infra import up
from infra.cli import ROOT, CliError
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.kube import descendants, eventually
from tests.cluster.test_lifecycle import BY_HAND

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


def test_an_update_ends_at_once_with_a_cause_that_no_waiting_takes_away(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """The shared claim was marked for deletion: it goes when its last pod does, and no new pod may use it."""
    stack.kube.run("delete", "pvc", "shared-models", "-n", stack.outputs.namespace, "--wait=false")
    overrides = {**stack.overrides, "models": [{**stack.overrides["models"][0], "contextLength": 1024}]}
    overrides["modelServer"] = {**stack.overrides["modelServer"], "cpu": "90m"}
    started = time.monotonic()
    with pytest.raises(CliError, match=r"PersistentVolumeClaim/shared-models: got a mark for deletion, which waits for pods .*; copy what"):
        stack.deployment.deploy(overrides)
    assert time.monotonic() - started < 120
    assert "waiting: PersistentVolumeClaim/shared-models: got a mark for deletion" in capsys.readouterr().err


def test_destroy_leaves_nothing_in_the_cluster(stack: Stack) -> None:
    stack.deployment.destroy()
    namespaces = [item["metadata"]["name"] for item in stack.kube.get("namespaces")["items"]]
    assert stack.outputs.namespace not in namespaces
    left = eventually(lambda: stack.kube.get("persistentvolumes")["items"], lambda items: not items, 60, "volumes are deleted")
    assert left == []


KILLED_AT = (
    "",
    "governance-namespace",
    "governance-quota",
    "cache-auth",
    "storage-claim",
    "models-writer",
    "ollama-servers",
    "model-server-servers",
    "api-server-keys",
    "api-server-servers",
)
"""Resources whose creation is cut off, in the order in which they come; the empty name is the preview before the update."""
DEPLOY = """
import json, sys
from pathlib import Path
from infra.up import Deployment
given = json.load(sys.stdin)
Deployment(**given["deployment"] | {"state_dir": Path(given["deployment"]["state_dir"])}).deploy(given["overrides"])
"""


def killed(stack: Stack, name: str) -> str:
    """Deploy in a process tree of its own, and kill all of it when `name` comes. Returns what was pending in the state then."""
    place = dataclasses.asdict(stack.deployment) | {"state_dir": str(stack.deployment.state_dir)}
    checkpoint = stack.deployment.state_dir / "state" / ".pulumi" / "stacks" / "modelfleet" / "dev.json"
    with (
        TemporaryFile("w+") as said,
        subprocess.Popen([sys.executable, "-c", DEPLOY], cwd=ROOT, stdin=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        assert process.stdin is not None
        json.dump({"deployment": place, "overrides": stack.overrides}, process.stdin)
        process.stdin.close()

        def come() -> bool:
            if process.poll() is not None:
                return True
            if not name:
                commands = [Path(f"/proc/{pid}/cmdline") for pid in descendants(process.pid)]
                return any(b"pulumi-language-python" in path.read_bytes() for path in commands if path.exists())
            try:
                state = json.loads(checkpoint.read_text())["checkpoint"].get("latest") or {}
            except (FileNotFoundError, ValueError):
                return False
            pending = [operation["resource"]["urn"] for operation in state.get("pending_operations") or []]
            return any(urn.endswith(f"::{name}") for urn in pending + [each["urn"] for each in state.get("resources") or []])

        while not come():
            time.sleep(0.01)
        if process.poll() is not None:
            said.seek(0)
            pytest.fail(f"the update ended before {name}: {said.read()}")
        # The language host has a process group of its own and would outlive Pulumi.
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
    state = json.loads(checkpoint.read_text())["checkpoint"].get("latest") or {}
    return ", ".join(operation["resource"]["urn"].rpartition("::")[2] for operation in state.get("pending_operations") or [])


@pytest.mark.timeout(900)
def test_an_up_that_was_killed_at_ten_points_is_finished_by_the_next(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """From nothing: the stack was destroyed above."""
    pending = [killed(stack, name) for name in KILLED_AT]
    assert len(pending) == 10
    assert sum(map(bool, pending)) >= 5, f"creations that were cut off: {pending}"
    stack.deployment.deploy(stack.overrides)
    assert "replaced (" not in capsys.readouterr().err, "what was made before the kill is kept"
    stack.deployment.cli.run("preview", "--refresh", "--expect-no-changes")
    state = json.loads(stack.deployment.cli.run("stack", "export"))["deployment"]
    assert not state.get("pending_operations")
    ours = {
        f"{item['type'].rpartition(':')[2]}/{item['id'].rpartition('/')[2]}"
        for item in state["resources"]
        if ":v1:" in item["type"] or "/v1:" in item["type"]
    }
    live = stack.kube.get(",".join(BY_HAND), "-A", "-l", "app.kubernetes.io/part-of=modelfleet")["items"]
    assert {f"{item['kind']}/{item['metadata']['name']}" for item in live} == ours, "objects that the state does not know"
    assert up.chat(stack.url, stack.key, MODEL, "Say it.") == SCRIPT
    stack.deployment.destroy()


def test_down_leaves_nothing_on_the_machine_and_other_clusters_alone(stack: Stack) -> None:
    other = load(default_name())
    before = ours(other) if other is not None else []
    assert ours(stack.cluster), "the marks are there while the cluster is up, or this test sees nothing"
    embedded.down(stack.cluster)
    assert ours(stack.cluster) == []
    assert not stack.cluster.state_dir.exists()
    assert set(before) <= set(ours(other) if other is not None else [])
