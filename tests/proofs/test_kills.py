"""`make up` killed at ten named points and at twenty random moments: the next one always finishes it. 30 minutes, on a cluster of its own."""

import os
import random
import time
from typing import Any

import pytest

from tests.cluster.conftest import Stack
from tests.cluster.interruptions import after, at, finish, killed
from tests.proofs.records import Proof

PROOF = Proof(
    "kills",
    guards=(
        *("infra", "components", "devcluster", "Pulumi.dev.yaml", "requirements.lock", "tools/pulumi", "tools/pulumi-resource-kubernetes"),
        *("tests/cluster/conftest.py", "tests/cluster/interruptions.py"),
    ),
)
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
MOMENTS = 20


@pytest.mark.timeout(900)
def test_an_up_that_was_killed_at_ten_points_is_finished_by_the_next(
    stack: Stack, figures: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stack.deployment.destroy()
    pending = [killed(stack, at(stack, name)) for name in KILLED_AT]
    assert None not in pending, f"an update ended before its point: {pending}"
    assert sum(map(bool, pending)) >= 5, f"creations that were cut off: {pending}"
    capsys.readouterr()
    finish(stack)
    assert "replaced (" not in capsys.readouterr().err, "what was made before the kill is kept"
    figures["named points"] = dict(zip(KILLED_AT, pending, strict=True))
    stack.deployment.destroy()


@pytest.mark.timeout(5400)
def test_an_up_that_was_killed_at_a_random_moment_is_finished_by_the_next(stack: Stack, figures: dict[str, Any]) -> None:
    """Every moment is one of the time that a whole deployment takes, so each is another state of the cluster."""
    started_at = time.monotonic()
    stack.deployment.deploy(stack.overrides)
    whole_s = time.monotonic() - started_at
    stack.deployment.destroy()
    seed = int(os.environ.get("SEED") or time.time())
    draw = random.Random(seed)  # noqa: S311 (not a secret)
    figures["random moments"] = {"seed": seed, "whole_s": round(whole_s, 1), "killed": []}
    for moment in sorted(draw.uniform(0, whole_s) for _ in range(MOMENTS)):
        pending = killed(stack, after(moment))
        figures["random moments"]["killed"].append({"after_s": round(moment, 1), "pending": pending})
        finish(stack)
        stack.deployment.destroy()
    ended_before = [each for each in figures["random moments"]["killed"] if each["pending"] is None]
    assert len(ended_before) <= MOMENTS / 4, f"moments after the end, seed {seed}"
