"""An `up` that is killed, with every process that it started, at a named resource or after some time; and what the next one must leave."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

from infra import ROOT
from infra.lifecycle.bring_up import chat
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.kube import descendants
from tests.cluster.test_lifecycle import BY_HAND

DEPLOY = """
import json, sys
from pathlib import Path
from infra.lifecycle.deployment import Deployment
given = json.load(sys.stdin)
Deployment(**given["deployment"] | {"state_dir": Path(given["deployment"]["state_dir"])}).deploy(given["overrides"])
"""
Moment = Callable[[int], bool]
"""Whether the moment has come, given the process that deploys."""


def _urns(stack: Stack) -> tuple[list[str], list[str]]:
    """Of operations that are pending in the state file, and of resources that are made."""
    checkpoint = stack.deployment.state_dir / "state" / ".pulumi" / "stacks" / "modelfleet" / "dev.json"
    try:
        latest = json.loads(checkpoint.read_text())["checkpoint"].get("latest") or {}
    except (FileNotFoundError, ValueError):
        return [], []
    pending = [operation["resource"]["urn"] for operation in latest.get("pending_operations") or []]
    return pending, [resource["urn"] for resource in latest.get("resources") or []]


def at(stack: Stack, name: str) -> Moment:
    """When the resource of that logical name comes into the state; for the empty name, when the preview before the update runs."""

    def come(process: int) -> bool:
        if not name:
            commands = [Path(f"/proc/{pid}/cmdline") for pid in descendants(process)]
            return any(b"pulumi-language-python" in path.read_bytes() for path in commands if path.exists())
        return any(urn.endswith(f"::{name}") for urns in _urns(stack) for urn in urns)

    return come


def after(seconds: float) -> Moment:
    deadline = time.monotonic() + seconds
    return lambda _: time.monotonic() > deadline


def killed(stack: Stack, come: Moment) -> str | None:
    """Deploy in a process tree of its own, and kill all of it when the moment comes.

    What was pending in the state then, comma-separated; None when the deployment ended before.
    """
    place = dataclasses.asdict(stack.deployment) | {"state_dir": str(stack.deployment.state_dir)}
    with (
        TemporaryFile("w+") as said,
        subprocess.Popen([sys.executable, "-c", DEPLOY], cwd=ROOT, stdin=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        assert process.stdin is not None
        json.dump({"deployment": place, "overrides": stack.overrides}, process.stdin)
        process.stdin.close()
        while process.poll() is None and not come(process.pid):
            time.sleep(0.01)
        if process.poll() is not None:
            said.seek(0)
            assert process.returncode == 0, said.read()
            return None
        # The language host has a process group of its own and would outlive Pulumi.
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
    return ", ".join(urn.rpartition("::")[2] for urn in _urns(stack)[0])


def finish(stack: Stack) -> None:
    """The next `up` ends well, state and cluster agree on every object, and the fleet answers."""
    stack.deployment.deploy(stack.overrides)
    stack.deployment.cli.preview(refresh=True, expect_no_changes=True)
    state = json.loads(stack.deployment.cli.run("stack", "export"))["deployment"]
    assert not state.get("pending_operations")
    ours = {
        f"{item['type'].rpartition(':')[2]}/{item['id'].rpartition('/')[2]}"
        for item in state["resources"]
        if ":v1:" in item["type"] or "/v1:" in item["type"]
    }
    live = stack.kube.get(",".join(BY_HAND), "-A", "-l", "app.kubernetes.io/part-of=modelfleet")["items"]
    assert {f"{item['kind']}/{item['metadata']['name']}" for item in live} == ours, "objects that the state does not know"
    assert chat(stack.url, stack.key, MODEL, "Say it.") == SCRIPT
