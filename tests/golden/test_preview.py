"""`make preview` as it runs in a pull request: the real engine, this repository's history, and what it says of a mistake."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import ROOT
from infra.analysis import preview
from infra.program.settings.images import IMAGE_NAMES, PROMETHEUS_IMAGE, VERIFIER_IMAGE, VLLM_IMAGE


def run(cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "infra.analysis.preview"], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This program in a repository of its own: main is what it renders now, the branch has one replica more, larger claims and an edited service."""
    root = tmp_path_factory.mktemp("repository")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    for name in (name for name in listed if (ROOT / name).exists()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / ".venv").symlink_to(ROOT / ".venv")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], [*identity, "commit", "-qm", "main"], ["switch", "-qc", "branch"]):
        subprocess.run(["git", "-C", str(root), *command], check=True, capture_output=True)
    path = root / "Pulumi.prod.yaml"
    document = yaml.safe_load(path.read_text())
    document["config"]["modelfleet:apiServer"]["replicas"] += 1
    document["config"]["modelfleet:storage"]["hot"]["size"] = "200Gi"
    path.write_text(yaml.safe_dump(document))
    with (root / "api_server" / "app.py").open("a") as file:
        file.write("# edited\n")
    return root


def test_a_branch_is_compared_with_main_worst_first_and_with_its_cost(repository: Path) -> None:
    done = run(repository, BASE="")
    assert done.returncode == 0, done.stderr
    assert "build/preview/summary.md, against main (" in done.stdout
    summary = (repository / "build" / "preview" / "summary.md").read_text()
    dev, prod = summary.partition("## dev")[2].split("## prod")
    assert "No object changes against `main`." in dev
    rows = [line.split(" | ")[:2] for line in prod.splitlines() if line.startswith(("| StatefulSet", "| Deployment"))][:3]
    assert rows == [
        ["| StatefulSet/model-server", "REPLACED"],
        ["| StatefulSet/ollama", "REPLACED"],
        ["| Deployment/api-server", "changed"],
    ]
    assert "`spec.replicas` `3` → `4`" in prod
    assert "whose pods are replaced one after the other: `api-server`.\n" in prod
    assert "| difference | 0 | +1 | +0.5 GiB | +500 GiB |" in prod
    assert "| qwen3-coder:30b | 3 | 3 | 3 | 262143 |" in prod
    assert "\nOne nvidia.com/gpu is a whole GPU (" in prod


def test_a_base_that_does_not_exist_is_one_clear_error(repository: Path) -> None:
    done = run(repository, BASE="nowhere")
    assert (done.returncode, done.stderr) == (
        1,
        "error: BASE: got nowhere, want a git ref of this repository; fetch it, or name another\n",
    )


def test_a_violation_fails_the_preview_and_stands_in_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(stack: str) -> dict[str, Any]:
        config = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"]
        config["modelfleet:storage"]["shared"]["provisioner"] = "kubernetes.io/nfs"
        return config

    monkeypatch.setattr(preview, "stack_config", wrong)
    monkeypatch.setattr(preview, "OUTPUT", tmp_path)
    monkeypatch.setenv("BASE", "HEAD")
    assert preview.main() == 1
    line = "StorageClass/shared-models: got provisioner kubernetes.io/nfs, want a CSI driver that makes volumes; name one"
    assert f"error: dev: {line}" in capsys.readouterr().err
    assert f"- {line}" in (tmp_path / "summary.md").read_text()


_SECRETS = ("apiKeys", "apiServerTls", "registryAuth", "sourceTokens", "verifierTls")


def test_what_a_stack_may_add_is_valid_and_masked_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Objects that neither committed stack has: signatures, a private registry, an operator's rules, an activator, TLS and a Gateway's route;
    secrets of another key."""

    def with_options(stack: str) -> dict[str, Any]:
        config = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"]
        refs = {
            name: f"registry.example.com/{name}@sha256:{'0' * 64}" for name in (*IMAGE_NAMES, PROMETHEUS_IMAGE, VERIFIER_IMAGE, VLLM_IMAGE)
        }
        config["modelfleet:images"] = {"refs": refs, "trust": {"publicKeys": "-----BEGIN PUBLIC KEY-----"}}
        config["modelfleet:monitoring"]["alertRules"] = "prometheus-rule"
        config["modelfleet:monitoring"] |= {"scrape": "pod-monitor", "labels": {"release": "kube-prometheus-stack"}}
        config["modelfleet:monitoring"]["prometheus"] = {"resources": {"cpu": "100m", "memory": "512Mi"}}
        config["modelfleet:fleet"]["scaleToZero"] = {"kubernetesCidrs": ["10.0.0.1/32"]}
        route = {"httpRoute": {"gateway": "public", "namespace": "gateways"}, "proxies": [{"namespace": "gateways"}]}
        config["modelfleet:apiServer"] |= {"tls": {"own": True}, "host": "models.example.com", "wayIn": route}
        return config | {f"modelfleet:{name}": {"secure": "v1:for-another-key"} for name in _SECRETS}

    monkeypatch.setattr(preview, "stack_config", with_options)
    text, errors = preview._preview("prod", tmp_path / "out", None)
    assert errors == [], text
    objects = [document for _, document in preview.manifests(tmp_path / "out")]
    kinds = {item["kind"] for item in objects}
    assert {"PodMonitor", "PrometheusRule", "ValidatingWebhookConfiguration", "Role", "HTTPRoute", "BackendTLSPolicy"} <= kinds
    [certificate] = [item for item in objects if item.get("type") == "kubernetes.io/tls"]
    assert set(certificate["data"].values()) == {"REDACTED"}
    logins = [item for item in objects if item.get("type") == "kubernetes.io/dockerconfigjson"]
    assert len(logins) == 2, "one for each namespace, under one name"
    assert all(set(item["data"].values()) == {"REDACTED"} for item in logins)
    pods = [item["spec"]["template"]["spec"] for item in objects if "template" in item.get("spec", {})]
    assert all(pod["imagePullSecrets"] == [{"name": "registry-auth"}] for pod in pods)
