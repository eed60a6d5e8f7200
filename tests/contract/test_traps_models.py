"""Traps of Ollama that others fell into, and why this fleet does not (docs/traps.md). Those of storing and delivering models."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from components.contract import PROMETHEUS
from model_sync import catalog, store
from tests import tiny_gguf
from tests.service import ollama, origins

ROOT = Path(__file__).resolve().parents[2]
OLLAMA_USER_FILES = {"blobs", "manifests", "catalog.json", ".sync.lock", ".retired"}
NO_SERVER = "http://127.0.0.1:9"


def documents(stack: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "tests" / "golden" / stack).glob("*.yaml"))]


def pods(stack: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(document, document["spec"]["template"]["spec"]) for document in documents(stack) if "template" in document.get("spec", {})]


def fleet(stack: str) -> dict[str, Any]:
    return next(pod for document, pod in pods(stack) if document["metadata"]["name"] == "ollama")


def environment(stack: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in fleet(stack)["containers"][0]["env"]}


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[origins.Origin]:
    with origins.serving(tiny_gguf.make(tmp_path / "m.gguf", "A script.").read_bytes()) as found:
        yield found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Ollama; built here on a new machine."""
    return ollama.install(tmp_path_factory.mktemp("ollama"))


def run(*arguments: str, umask: int = 0o022, models: list[dict[str, Any]] | None = None) -> None:
    env = {"PATH": os.environ["PATH"], "MODEL_SYNC_MODELS": json.dumps({"fleet": 0, "models": models or []})}
    argv = [sys.executable, "-m", "model_sync", *arguments]
    subprocess.run(argv, cwd=ROOT, env=env, umask=umask, check=True, capture_output=True, text=True, timeout=60)


def publish(shared: Path, origin: origins.Origin, *names: str, umask: int = 0o022) -> None:
    digest = f"sha256:{hashlib.sha256(origin.content).hexdigest()}"
    common = {"context_length": 2048, "quantization": "", "replicas": 0, "keep_alive": "-1", "size": len(origin.content)}
    shared.mkdir(exist_ok=True)
    models = [{"name": name, "source": origin.url, "digest": digest, **common} for name in names]
    run("publish", "/nowhere", str(shared), models=models, umask=umask)


def hydrate(shared: Path, hot: Path, umask: int = 0o022) -> None:
    run("follow", str(shared), str(hot), "--ordinal=0", f"--marker={hot}.marker", "--once", f"--server={NO_SERVER}", umask=umask)


def test_trap_01_every_replica_downloads_the_model_again(origin: origins.Origin, tmp_path: Path) -> None:
    publish(tmp_path / "shared", origin, "tiny:1")
    for replica in range(4):
        hydrate(tmp_path / "shared", tmp_path / f"hot-{replica}")
        assert [entry.name for entry in (catalog.read(tmp_path / f"hot-{replica}") or catalog.Catalog()).models] == ["tiny:1"]
    assert origin.sent == len(origin.content)


@pytest.mark.parametrize("stack", ["dev", "prod"])
def test_trap_02_one_claim_of_one_node_for_pods_on_several(stack: str) -> None:
    claims = {document["metadata"]["name"]: document for document in documents(stack) if document["kind"] == "PersistentVolumeClaim"}
    for document, pod in pods(stack):
        for volume in pod.get("volumes", []):
            claim = volume.get("persistentVolumeClaim")
            if claim and document["metadata"]["name"] != PROMETHEUS:
                assert claims[claim["claimName"]]["spec"]["accessModes"] == ["ReadWriteMany"], document["metadata"]["name"]
    (template,) = next(document for document in documents(stack) if document["kind"] == "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert template["spec"]["accessModes"] == ["ReadWriteOnce"]


@pytest.mark.parametrize("stack", ["dev", "prod"])
def test_trap_03_two_servers_that_write_one_store(stack: str) -> None:
    """No server can write: not to the shared store, not to its own."""
    writers: list[str] = []
    for document, pod in pods(stack):
        if document["metadata"]["name"] == PROMETHEUS:
            # Its claim has no models, and no second server is ever there.
            assert (document["spec"]["replicas"], document["spec"]["strategy"]) == (1, {"type": "Recreate"})
            continue
        shared = {volume["name"] for volume in pod.get("volumes", []) if "persistentVolumeClaim" in volume}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            mounts = [mount for mount in container.get("volumeMounts", []) if not mount.get("readOnly")]
            # Beside the store, on its disk.
            writable = {mount["name"] for mount in mounts if mount.get("subPath") != "vllm-cache"}
            if writable & (shared | {"models"}):
                writers.append(f"{document['kind']}/{container['name']}")
            if writable & shared:
                assert document["kind"] == "Job"
    assert sorted(set(writers)) == ["Job/model-sync", "StatefulSet/model-sync"]


def test_trap_04_a_starting_server_prunes_what_another_is_writing(origin: origins.Origin, program: Path, tmp_path: Path) -> None:
    """The trap is real in this version, and the environment of the fleet avoids it."""
    publish(tmp_path / "shared", origin, "tiny:1")
    hydrate(tmp_path / "shared", tmp_path / "hot")
    orphan = tmp_path / "hot" / "blobs" / f"sha256-{'0' * 64}"
    for pruned, kept in ((False, environment("prod")["OLLAMA_NOPRUNE"]), (True, "0")):
        orphan.write_text("two hours old, and no manifest yet")
        old = time.time() - 7200
        os.utime(orphan, (old, old))
        with ollama.running(program, tmp_path / "hot", tmp_path, OLLAMA_NOPRUNE=kept):
            assert orphan.exists() is not pruned


def test_trap_05_a_store_that_a_read_only_server_refuses(origin: origins.Origin, program: Path, tmp_path: Path) -> None:
    """No directory is missing or empty, no name has a colon, also when the last model has gone; a server starts on it."""
    shared, hot = tmp_path / "shared", tmp_path / "hot"
    publish(shared, origin, "tiny:1", "team/tiny:1")
    for names in (("tiny:1", "team/tiny:1"), ("tiny:1",), ()):
        publish(shared, origin, *names)
        run("clean", str(shared))
        hydrate(shared, hot)
        for path in (shared, hot):
            assert {each.name for each in path.iterdir()} <= OLLAMA_USER_FILES
            assert (path / "blobs").is_dir()
            assert not [each for each in (path / "manifests").rglob("*") if each.is_dir() and not any(each.iterdir())]
            assert not list(path.rglob("*:*"))
        with ollama.running(program, hot, tmp_path, OLLAMA_NOPRUNE="0") as server:
            shown = httpx.get(f"{server.url}/api/tags", timeout=10, trust_env=False).json()["models"]
            assert {model["name"] for model in shown} == set(names)


@pytest.mark.parametrize("stack", ["dev", "prod"])
def test_trap_06_the_key_pair_is_written_beside_the_models(stack: str) -> None:
    env, container = environment(stack), fleet(stack)["containers"][0]
    mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    assert not mounts[env["HOME"]].get("readOnly"), "it is written at start"
    assert mounts[env["OLLAMA_MODELS"]]["readOnly"] is True
    assert not Path(env["OLLAMA_MODELS"]).is_relative_to(env["HOME"])


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_trap_07_files_that_another_user_cannot_read(origin: origins.Origin, tmp_path: Path, umask: int) -> None:
    shared, hot = tmp_path / "shared", tmp_path / "hot"
    publish(shared, origin, "tiny:1", umask=umask)
    hydrate(shared, hot, umask=umask)
    for path in (shared, hot):
        for each in [path / "catalog.json", *(path / "blobs").iterdir(), *(path / "manifests").rglob("*")]:
            assert each.stat().st_mode & 0o777 == (0o755 if each.is_dir() else 0o644), each
    for stack in ("dev", "prod"):
        users = {(pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) for _, pod in pods(stack)}
        assert users == {(10001, 10001)}


def test_trap_27_aliases_that_several_servers_copy(origin: origins.Origin, tmp_path: Path) -> None:
    """An alias is a second declared model of the same source: the one writer makes it, of the same blobs."""
    publish(tmp_path / "shared", origin, "tiny:1", "alias:1")
    hydrate(tmp_path / "shared", tmp_path / "hot")
    first, second = (catalog.read(tmp_path / "hot") or catalog.Catalog()).models
    assert (first.name, second.name) == ("tiny:1", "alias:1")
    assert first.digest == second.digest
    assert origin.sent == len(origin.content)
    assert sum(path.stat().st_size for path in (tmp_path / "hot" / "blobs").iterdir()) == first.size
    assert store.used(tmp_path / "shared") == first.size
