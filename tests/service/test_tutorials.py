"""What tutorials have one run on one's own machine, as it stands there: facts of a model's file, the file's server, a key and a first question."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from model_sync import gguf
from tests import tiny_gguf
from tests.service.conftest import KEY, SCRIPT, start_api_server, start_model_server
from tests.service.processes import ROOT, Service, free_port
from tests.tutorials import DIRECTORY, commands

MODELS, OPENHANDS = DIRECTORY / "add-a-model.md", DIRECTORY / "openhands.md"
CONTEXT = 32768


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the commands need of one, and the file."""
    for name in (".venv", "model_sync"):
        (tmp_path / name).symlink_to(ROOT / name)
    tiny_gguf.make(tmp_path / "coder.gguf", SCRIPT)
    return tmp_path


def shell(script: str, where: Path, text: str = "") -> str:
    done = subprocess.run(["bash", "-euc", script], cwd=where, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_facts_of_a_file_are_what_the_stack_file_wants(checkout: Path) -> None:
    digest, size, facts = commands(MODELS)[:3]
    content = (checkout / "coder.gguf").read_bytes()
    assert shell(digest, checkout) == f"{hashlib.sha256(content).hexdigest()}  coder.gguf\n"
    assert shell(size, checkout) == f"{len(content)}\n"
    found = {line.rpartition(" ")[0].partition(".")[2]: line.rpartition(" ")[2] for line in shell(facts, checkout).splitlines()}
    known = gguf.metadata(checkout / "coder.gguf")
    assert found["architecture"] == known["general.architecture"]
    for name in ("block_count", "context_length", "embedding_length", "attention.head_count", "attention.head_count_kv"):
        assert found[name] == str(known[f"{found['architecture']}.{name}"]), name


def test_pythons_own_server_of_files_is_a_source_of_models(checkout: Path, tmp_path: Path) -> None:
    (command,) = (each for each in commands(MODELS) if "http.server" in each)
    port = free_port()
    command = command.replace("8001", str(port)).replace("198.18.10.1", "127.0.0.1")
    content = (checkout / "coder.gguf").read_bytes()
    entry = {"name": "coder:1", "source": f"http://127.0.0.1:{port}/coder.gguf", "digest": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    entry |= {"size": len(content), "context_length": 2048, "quantization": "", "replicas": 0, "keep_alive": "-1"}
    (tmp_path / "shared").mkdir()
    server = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        writer = [ROOT / ".venv" / "bin" / "python", "-m", "model_sync", "publish", tmp_path / "seed", tmp_path / "shared", "--attempts=8"]
        environment = {"PATH": os.environ["PATH"], "MODEL_SYNC_MODELS": json.dumps({"fleet": 0, "models": [entry]})}
        done = subprocess.run(writer, cwd=ROOT, env=environment, capture_output=True, text=True)
    finally:
        server.kill()
        server.wait()
    assert done.returncode == 0, done.stderr
    assert [each["name"] for each in json.loads((tmp_path / "shared" / "catalog.json").read_text())["models"]] == ["coder:1"]


@pytest.fixture(scope="module")
def api(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    work = tmp_path_factory.mktemp("tutorials")
    with ExitStack() as stack:
        server = start_model_server(stack, store, work, "tiny:1")
        yield start_api_server(stack, work, {"agent:4b": {"url": server.url, "model": "tiny:1", "context_length": CONTEXT}})


@pytest.mark.parametrize("page", [MODELS, OPENHANDS], ids=["add-a-model", "openhands"])
def test_a_key_that_is_typed_in_lists_the_models(page: Path, api: Service, tmp_path: Path) -> None:
    typed, asked = (each for each in commands(page) if "MODELFLEET_API_KEY" in each and "LLM_" not in each)
    script = f"{typed}\n{asked.replace('http://198.18.10.11:30080', api.url)}"
    answer = shell(script, tmp_path, f"{KEY}\n")
    assert '"id": "agent:4b"' in answer
    assert f'"context_length": {CONTEXT}' in answer
    assert "invalid_api_key" in shell(script, tmp_path, "not-a-key-of-this-fleet\n")
