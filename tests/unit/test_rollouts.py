"""When a StatefulSet is rolled out, and how long one may wait."""

from typing import Any

import pytest

from infra.engine.recorded import longest_wait_s
from infra.lifecycle.rollouts import unfinished


def found(generation: int = 2, replicas: int = 1, annotations: dict[str, str] | None = None, **status: Any) -> dict[str, Any]:
    """As the API sends it."""
    whole = {"observedGeneration": 2, "readyReplicas": 1, "currentRevision": "b", "updateRevision": "b"} | status
    metadata = {"name": "model-server", "generation": generation, "annotations": annotations}
    return {
        "metadata": metadata,
        "spec": {"replicas": replicas},
        "status": {name: each for name, each in whole.items() if each is not None},
    }


def test_newest_pods_that_are_ready_are_the_end() -> None:
    assert unfinished([found()]) == []


@pytest.mark.parametrize(
    "status",
    [
        {"generation": 3},
        {"updateRevision": "c"},
        {"readyReplicas": None},
        {"replicas": 2},
        {"observedGeneration": None, "readyReplicas": None},
    ],
    ids=["the change was not seen", "an old pod is left", "none is ready", "one is missing", "it is new"],
)
def test_anything_else_is_waited_for(status: dict[str, Any]) -> None:
    assert unfinished([found(**status)]) == ["model-server"]


def test_none_are_wanted_and_none_are_there() -> None:
    assert unfinished([found(replicas=0, readyReplicas=None, currentRevision="a")]) == []


@pytest.mark.parametrize("name", ["pulumi.com/waitFor", "pulumi.com/skipAwait"])
def test_what_an_update_waits_for_in_another_way_is_left_to_that(name: str) -> None:
    assert unfinished([found(readyReplicas=None, annotations={name: "jsonpath={.metadata.uid}"})]) == []


def test_the_wait_is_the_longest_that_pulumi_was_given() -> None:
    assert longest_wait_s([]) == 600
    assert longest_wait_s([{"customTimeouts": {"update": 3300, "create": 9000}}, {"customTimeouts": {}}, {}]) == 3300
