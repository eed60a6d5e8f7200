"""Twenty minutes of chats on llama.cpp, half of which their clients leave: nothing grows, no place stays taken. 22 minutes."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from images import embedded
from model_sync import gguf
from tests.proofs.records import Proof
from tests.proofs.soak import MODEL, SHAPE, SOAK_S, Soaked, clients, soak
from tests.service.conftest import start_model_server

PROOF = Proof("soak-llama-cpp", guards=("model_server", "requirements.lock", "tests/proofs/soak.py"))


@pytest.mark.timeout(SOAK_S + 900)
def test_llama_cpp(tmp_path: Path, figures: dict[str, Any]) -> None:
    [weights] = embedded.default_model().values()
    gguf.add(MODEL, weights, tmp_path / "models", link=True)
    with ExitStack() as stack:
        pool = stack.enter_context(clients())
        service = start_model_server(stack, tmp_path / "models", tmp_path, MODEL, "/ready", None, PROMPT_CACHE_MIB="64", **SHAPE)
        soak(Soaked(service.url, [service.process.pid], pool.submit), figures)
