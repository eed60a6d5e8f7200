"""A fleet's namespace, its shared models and its state are deleted; a backup and `make up` bring it back. 5 minutes."""

import argparse
import csv
import json
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.engine.errors import CommandError
from infra.lifecycle import backup
from tests.cluster.conftest import MODEL, SCRIPT, Stack
from tests.cluster.kube import eventually
from tests.cluster.test_prometheus import Ours, counted
from tests.cluster.test_stack import ask
from tests.proofs.records import Proof

PROOF = Proof("restore", guards=("infra/lifecycle", "infra/program", "infra/engine", "components", "model_sync", "Pulumi.dev.yaml"))


def answers(stack: Stack) -> bool:
    try:
        return ask(stack, MODEL).status_code == 200
    except httpx.TransportError:
        return False


def used(stack: Stack, capsys: pytest.CaptureFixture[str]) -> bool:
    try:
        return MODEL in counted(stack, capsys)
    except CommandError:
        return False


@pytest.mark.timeout(1200)
def test_a_fleet_that_was_deleted_comes_back(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], figures: dict[str, Any]
) -> None:
    target, namespace, state = Ours("dev"), stack.outputs.namespace, stack.deployment.state_dir
    object.__setattr__(target, "made", stack.deployment)
    (tmp_path / "password").write_text("of the repository")
    monkeypatch.setenv("RESTIC_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("RESTIC_CACHE_DIR", str(tmp_path / "cache"))
    typed = {"to": str(tmp_path / "kept"), "source": str(tmp_path / "kept"), "snapshot": "latest", "stack": "dev", "prometheus": ""}
    options = argparse.Namespace(**typed)
    key = stack.key
    assert ask(stack, MODEL).json()["choices"][0]["message"]["content"] == SCRIPT
    eventually(lambda: used(stack, capsys), bool, 120, "Prometheus has seen the chat")

    started_at = time.monotonic()
    backup.backup(target, options)
    figures["backup, s"] = round(time.monotonic() - started_at)
    figures["backup, bytes"] = sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*") if path.is_file())
    before = json.loads((state / "backup" / backup.CATALOG).read_text())["models"]
    assert before

    stack.kube.run("delete", "namespace", namespace, "--wait=false")
    left = lambda: stack.kube.run("get", "namespace", namespace, "--ignore-not-found").strip()  # noqa: E731
    eventually(left, lambda found: not found, 300, "the namespace is gone")
    shutil.rmtree(state)

    started_at = time.monotonic()
    backup.restore(target, options)
    assert stack.key == key
    # What compares a stack with its cluster sees that the objects are gone, and makes them.
    stack.outputs = stack.deployment.deploy(stack.overrides)
    eventually(lambda: answers(stack), bool, 180, "an answer with the key of before")
    figures["from the backup to an answer, s"] = round(time.monotonic() - started_at)
    assert ask(stack, MODEL).json()["choices"][0]["message"]["content"] == SCRIPT
    after = json.loads(backup._catalog(target, stack.deployment))["models"]
    assert {each["name"]: each["digest"] for each in after} == {each["name"]: each["digest"] for each in before}
    figures["lost"] = "samples of metrics and entries of the cache; usage is in the backup"
    rows = csv.DictReader((state / "backup" / backup.USAGE).read_text().splitlines())
    assert MODEL in {row["model"] for row in rows}
