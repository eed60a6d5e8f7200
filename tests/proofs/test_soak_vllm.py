"""Twenty minutes of chats on vLLM, half of which their clients leave: nothing grows, no place stays taken. 30 minutes, 7 GB of disk."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.processes import all_ended
from images import embedded
from model_sync import tree
from tests.proofs.records import Proof
from tests.proofs.soak import MODEL, SHAPE, SOAK_S, Soaked, clients, soak
from tests.proofs.test_vllm import TREE, run
from tests.service.conftest import start_model_server

PROOF = Proof("soak-vllm", guards=("model_server", "requirements.lock", "tests/proofs/soak.py", "tests/proofs/vllm.lock"))


@pytest.mark.timeout(SOAK_S + 1800)
def test_vllm_on_the_cpu(tmp_path: Path, vllm_python: Path, figures: dict[str, Any]) -> None:
    [weights] = embedded.default_model().values()
    (tmp_path / "packed.gguf").symlink_to(weights)
    run(vllm_python, TREE, str(tmp_path), "packed.gguf", str(tmp_path / "model"))
    tree.add(MODEL, tmp_path / "model", tmp_path / "models")
    engine = {"ENGINE": "vllm", "VLLM_PYTHON": str(vllm_python), "DTYPE": "bfloat16", "ENFORCE_EAGER": "1"}
    places = {"WEIGHTS_DIR": str(tmp_path / "weights"), "VLLM_CACHE_DIR": str(tmp_path / "cache")}
    process = {"VLLM_CPU_KVCACHE_SPACE": "1", "HOME": str(tmp_path)}
    # vLLM's workers outlive a server that is killed.
    with all_ended(), ExitStack() as stack:
        pool = stack.enter_context(clients())
        service = start_model_server(stack, tmp_path / "models", tmp_path, MODEL, "", process, **engine, **places, **SHAPE)
        service.wait_for("/ready", timeout_s=600)
        soak(Soaked(service.url, [service.process.pid], pool.submit), figures)
