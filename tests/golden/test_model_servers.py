"""Two model servers, of which the second one is scaled: what it adds to the dev stack, and what it changes of the rest."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.analysis import preview
from infra.analysis.policy import rules
from tests.golden.engine import Engine
from tests.golden.test_golden import GOLDEN
from tests.golden.test_upgrade import named

KEPT = GOLDEN / "model-servers"
"""The objects that a dev stack with one model server does not have, or has otherwise."""
SECOND = {
    "name": "coder",
    "replicas": 2,
    "model": "smollm2:135m",
    "modelId": "smollm2-coder",
    "parallel": 4,
    "resources": {"cpu": "100m", "memory": "1Gi"},
    "scale": {"min": 0, "idleMinutes": 30, "keepCopies": False, "kubernetesCidrs": ["10.0.0.1/32"]},
    "placement": {"nodeSelector": {"example.com/pool": "coders"}, "zones": "prefer"},
}

OBJECTS = ("ModelServer", "StatefulSet", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "Service", "ServiceAccount")
SCALED = ("Activator", "Deployment", "NetworkPolicy", "Role", "RoleBinding", "ServiceAccount")


def two() -> dict[str, Any]:
    config = preview.stack_config("dev")
    config["modelfleet:governance"] |= {"cpu": "8", "memory": "16Gi"}
    config["modelfleet:monitoring"] |= {"scrape": "pod-monitor"}
    return config | {"modelfleet:modelServers": [*config["modelfleet:modelServers"], SECOND]}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = Engine("dev", tmp_path_factory.mktemp("two"))
    engine.deploy(two())
    preview.tidy(engine.target)
    return engine.target


def test_the_rendering_is_the_reviewed_one(rendered: Path) -> None:
    found = {path.name: preview.normalized(path.read_text()) for path in rendered.glob("*.yaml")}
    first = {path.name: path.read_text() for path in (GOLDEN / "dev").glob("*.yaml")}
    assert first.keys() <= found.keys()
    found = {name: text for name, text in found.items() if first.get(name) != text}
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.rmtree(KEPT, ignore_errors=True)
        KEPT.mkdir()
        for name, text in found.items():
            (KEPT / name).write_text(text)
    assert found == {path.name: path.read_text() for path in KEPT.glob("*.yaml")}
    assert "statefulset-model-server.yaml" not in found, "another server is no matter of the first one"


def test_it_keeps_our_own_rules(rendered: Path) -> None:
    assert rules.violations([item for _, item in preview.manifests(rendered)], rules.RENDERING_RULES) == []


def test_a_second_one_replaces_and_removes_nothing(tmp_path: Path) -> None:
    engine = Engine("dev", tmp_path)
    one = two() | {"modelfleet:modelServers": preview.stack_config("dev")["modelfleet:modelServers"]}
    engine.deploy(one)
    steps = {(step.op, named(step)) for step in engine.planned(config=two()).steps}
    own = {name for op, name in steps if op == "create"}
    made = {f"{kind}/model-server-coder" for kind in OBJECTS} | {"Service/model-server-coder-metrics"}
    assert own == made | {f"{kind}/activator" for kind in SCALED} | {"Service/api-server-demand"}
    assert steps - {("create", name) for name in own} == {
        ("update", "Deployment/api-server"),
        # One class is of all copies: where those of one server may go, its volumes go with their claims.
        ("update", "StorageClass/local-nvme"),
        *(("update", f"NetworkPolicy/{name}") for name in ("api-server", "cache-server", "prometheus")),
        # It is named by Pulumi, so its successor is there before it goes.
        ("replace", "ConfigMap/prometheus-config"),
        ("update", "Deployment/prometheus"),
    }
    assert engine.planned(config=one).steps == []
