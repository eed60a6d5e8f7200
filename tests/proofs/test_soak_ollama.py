"""Twenty minutes of chats on Ollama with its agent, half of which their clients leave: nothing grows, no place stays taken. 22 minutes."""

from pathlib import Path
from typing import Any

import pytest

from images import embedded
from model_sync import gguf
from tests.proofs.records import Proof
from tests.proofs.soak import CONTEXT, MODEL, PLACES, SOAK_S, Soaked, soak
from tests.service.ollama_pod import CONTROL, OLLAMA, pod
from tests.service.test_ollama_agent import digest, write_catalog

PROOF = Proof(
    "soak-ollama",
    guards=("ollama_agent", "tools/ollama", "images/ollama", "images/pins.toml", "tests/service/ollama_pod.py", "tests/proofs/soak.py"),
)


@pytest.mark.timeout(SOAK_S + 900)
def test_ollama_with_its_agent(tmp_path: Path, figures: dict[str, Any]) -> None:
    [weights] = embedded.default_model().values()
    gguf.add(MODEL, weights, tmp_path / "models", link=True)
    with pod(tmp_path, tmp_path / "models") as server:
        write_catalog(server, {"name": MODEL, "digest": digest(server, MODEL), "context_length": CONTEXT})
        agent = server.agent()
        process = server.ollama(OLLAMA_NUM_PARALLEL=str(PLACES), OLLAMA_CONTEXT_LENGTH=str(CONTEXT), LLAMA_ARG_CACHE_RAM="64")
        server.until(lambda: server.status(f"{CONTROL}/ready") == 200, "the agent has loaded the model")
        soak(Soaked(OLLAMA, [process.pid, agent.pid], server.submit), figures)
        assert server.status(f"{CONTROL}/ready") == 200, server.reason()
