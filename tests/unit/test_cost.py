"""What an environment asks for."""

import copy
from pathlib import Path
from typing import Any

import yaml

from infra.analysis.manifests import report
from infra.analysis.manifests.cost import Cost, total

GIB = 2**30


def container(cpu: str, memory: str, **more: str) -> dict[str, Any]:
    return {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory, **more}}}


def workload(kind: str, replicas: int | None, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    count = {} if replicas is None else {"replicas": replicas}
    return {"kind": kind, "metadata": {"name": "w"}, "spec": {**count, "template": {"spec": spec}, **more}}


def test_replicas_gpus_and_claims_of_replicas_are_multiplied() -> None:
    claim = {"spec": {"resources": {"requests": {"storage": "100Gi"}}}}
    spec = {"containers": [container("8", "64Gi", **{"nvidia.com/gpu": "2"})]}
    assert total([workload("StatefulSet", 3, spec, volumeClaimTemplates=[claim])]) == Cost(
        gpus=6, cpu=24, memory=192 * GIB, storage=300 * GIB
    )


def test_claimed_devices_are_gpus_too() -> None:
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": 2}}
    template = {"kind": "ResourceClaimTemplate", "metadata": {"name": "t"}, "spec": {"spec": {"devices": {"requests": [request]}}}}
    spec = {"containers": [container("1", "1Gi")], "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]}
    assert total([template, workload("StatefulSet", 3, spec)]).gpus == 6


def test_an_init_container_counts_only_where_it_is_larger() -> None:
    spec = {"containers": [container("100m", "1Gi"), container("100m", "1Gi")], "initContainers": [container("1", "512Mi")]}
    assert total([workload("Deployment", 1, spec)]) == Cost(cpu=1, memory=2 * GIB)


def test_a_sidecar_counts_beside_the_containers() -> None:
    spec = {"containers": [container("1", "1Gi")], "initContainers": [{**container("100m", "1Gi"), "restartPolicy": "Always"}]}
    assert total([workload("Deployment", 1, spec)]) == Cost(cpu=1.1, memory=2 * GIB)


def test_a_daemon_set_counts_once_and_a_job_not_at_all() -> None:
    spec = {"containers": [container("1", "1Gi")]}
    assert total([workload("DaemonSet", None, spec), workload("Job", None, spec)]) == Cost(cpu=1, memory=GIB)


def test_the_prod_stack_costs_what_its_settings_say() -> None:
    prod = [yaml.safe_load(path.read_text()) for path in (Path(__file__).parents[1] / "golden" / "prod").glob("*.yaml")]
    found = total(prod)
    assert found.gpus == 3 + 2 * 2
    assert found.storage == (1024 + 3 * 100 + 2 * 100) * GIB


def test_the_report_shows_the_difference_with_its_sign() -> None:
    old = [workload("Deployment", 2, {"containers": [container("500m", "1Gi")]})]
    new = copy.deepcopy(old)
    new[0]["spec"]["replicas"] = 1
    lines = report.cost(new, old).splitlines()
    assert lines[2:5] == [
        "| now | 0 | 0.5 | 1 GiB | 0 GiB |",
        "| base | 0 | 1 | 2 GiB | 0 GiB |",
        "| difference | 0 | -0.5 | -1 GiB | 0 GiB |",
    ]
