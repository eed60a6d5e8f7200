"""When a StatefulSet is rolled out, and how long one may wait."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.engine.errors import CliError
from infra.engine.progress import Watched
from infra.engine.recorded import longest_wait_s
from infra.lifecycle.rollouts import unfinished, until_finished
from tests.unit.kube_api import serving


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


@contextmanager
def api(answers: list[tuple[int, dict[str, Any]]], work: Path) -> Iterator[str]:
    """One that answers each request with the next of these, and the last one ever after."""

    def answer(_: str) -> tuple[int, bytes]:
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        return status, json.dumps(body).encode()

    with serving(answer, work) as kubeconfig:
        yield kubeconfig


def listed(*sets: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 200, {"apiVersion": "apps/v1", "kind": "StatefulSetList", "metadata": {}, "items": [whole(each) for each in sets]}


def whole(each: dict[str, Any]) -> dict[str, Any]:
    """With what the client's types ask for."""
    template = {"metadata": {}, "spec": {"containers": [{"name": "c"}]}}
    return each | {
        "spec": {**each["spec"], "serviceName": "s", "selector": {}, "template": template},
        "status": {"replicas": 1, **each["status"]},
    }


@pytest.mark.parametrize("answers", [[(503, {})], [(0, {})], [(429, {})], [listed(found(readyReplicas=0)), (503, {})]])
def test_an_api_that_is_away_for_a_moment_ends_no_wait(tmp_path: Path, answers: list[tuple[int, dict[str, Any]]]) -> None:
    with api([*answers, listed(found(readyReplicas=0)), listed(found())], tmp_path) as kubeconfig:
        until_finished("c", kubeconfig, "fleet", Watched, 30)


def test_one_who_may_not_look_waits_for_nothing(tmp_path: Path) -> None:
    with api([(403, {})], tmp_path) as kubeconfig:
        until_finished("c", kubeconfig, "fleet", Watched, 30)


@pytest.mark.parametrize(
    ("answer", "name"), [(listed(found(readyReplicas=0)), "model-server"), ((503, {}), "(the API server does not say)")]
)
def test_a_wait_has_an_end_that_says_for_what(tmp_path: Path, answer: tuple[int, dict[str, Any]], name: str) -> None:
    with api([answer], tmp_path) as kubeconfig, pytest.raises(CliError) as caught:
        until_finished("c", kubeconfig, "fleet", Watched, 1.5)
    assert str(caught.value) == (
        f"StatefulSet/{name}: got pods that are not ready after 2 s, want those of the newest revision; run make explain"
    )
