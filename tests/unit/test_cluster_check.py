"""What the cluster check says of a pod that did not run."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from infra.lifecycle.cluster_check import asked_of
from infra.lifecycle.trial import Cluster, Trial, cause
from tests.unit.test_settings import REFS, stack_config

WAITS = ("PersistentVolumeClaim", "Normal", "WaitForFirstConsumer")
NO_VOLUME = ("PersistentVolumeClaim", "Normal", "ExternalProvisioning")
FAILED = ("PersistentVolumeClaim", "Warning", "ProvisioningFailed")
CAME = ("PersistentVolumeClaim", "Normal", "ProvisioningSucceeded")
CREATED = ("Job", "Normal", "SuccessfulCreate")
NO_NODE = ("Pod", "Warning", "FailedScheduling")
NO_MOUNT = ("Pod", "Warning", "FailedMount")


@pytest.mark.parametrize(
    ("events", "want"),
    [
        ((WAITS, NO_VOLUME, CREATED, NO_NODE), NO_VOLUME),
        ((CREATED, NO_NODE, FAILED), FAILED),
        ((WAITS, CREATED, NO_NODE), NO_NODE),
        ((CAME, CREATED, NO_MOUNT), NO_MOUNT),
        ((CREATED,), CREATED),
    ],
)
def test_the_cause_is_told_whoever_comes_first(events: tuple[tuple[str, str, str], ...], want: tuple[str, str, str]) -> None:
    for order in itertools.permutations(events):
        said = [
            {
                "involvedObject": {"kind": kind},
                "type": level,
                "reason": reason,
                "message": "why",
                "lastTimestamp": f"2026-01-01T00:00:0{at}Z",
            }
            for at, (kind, level, reason) in enumerate(order)
        ]
        assert cause(said) == f"{want[2]} (why)"


def test_among_equals_it_is_the_last() -> None:
    def pod(reason: str, at: int) -> dict[str, object]:
        made = {"creationTimestamp": f"2026-01-01T00:00:0{at}Z"}
        return {"involvedObject": {"kind": "Pod"}, "reason": reason, "message": "why", "metadata": made}

    assert cause([pod("Pulling", 2), pod("Scheduled", 1)]) == "Pulling (why)"
    assert cause([]) == "nothing"


class _Noted(Cluster):
    """Notes what would be created, in place of a cluster."""

    def __init__(self) -> None:
        self.created: list[tuple[str, dict[str, Any]]] = []

    def create(
        self, version: str, kind: str, name: str, namespace: str | None, labels: Mapping[str, str] | None = None, **body: Any
    ) -> None:
        self.created.append((kind, body))


@pytest.mark.parametrize(
    ("images", "image", "selector"),
    [
        ({"refs": REFS}, "", {}),
        ({"refs": REFS, "platform": "linux/arm64"}, "", {"kubernetes.io/arch": "arm64"}),
        # Of another image than the stack's own nobody knows it.
        ({"builder": "docker-build", "platform": "linux/arm64"}, "python@sha256:0", {}),
    ],
)
def test_a_check_runs_where_the_image_does(images: dict[str, Any], image: str, selector: dict[str, str]) -> None:
    asked, cluster = asked_of({**stack_config("dev"), "modelfleet:images": images}, image, None), _Noted()
    Trial(cluster, asked).start("open", ["pass"])
    (job,) = (body for kind, body in cluster.created if kind == "Job")
    assert job["spec"]["template"]["spec"]["nodeSelector"] == selector
