"""Ten thousand hostile inputs on sockets of the gateway, and as many of the model server: each answered in a shape, nothing kept. An hour."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from model_sync import gguf
from tests import tiny_gguf
from tests.proofs.records import Proof
from tests.service.conftest import start_model_server, valkey
from tests.service.processes import Service
from tests.service.test_hostile_input import gateway, hammer

PROOF = Proof(
    "hostile-input",
    guards=(
        *("api_server", "model_server", "requirements.lock"),
        *("tests/service/hostile.py", "tests/service/neighbours.py", "tests/service/test_hostile_input.py"),
    ),
)
INPUTS = 10_000
__all__ = ["gateway", "valkey"]


@pytest.mark.timeout(7200)
def test_a_gateway(gateway: Service, figures: dict[str, Any]) -> None:
    figures["gateway"] = {"inputs": INPUTS, "statuses": counted(gateway)}


@pytest.mark.timeout(7200)
def test_a_model_server(tmp_path: Path, figures: dict[str, Any]) -> None:
    gguf.add("tiny:1", tiny_gguf.make(tmp_path / "tiny.gguf", "Hello."), tmp_path / "models")
    with ExitStack() as stack:
        service = start_model_server(stack, tmp_path / "models", tmp_path, "tiny:1", MODEL_ID="a", PARALLEL="4")
        figures["model server"] = {"inputs": INPUTS, "statuses": counted(service, has_metrics_port=False)}


def counted(service: Service, *, has_metrics_port: bool = True) -> dict[str, int]:
    """How often each status came; 0 for inputs that no answer is due to."""
    return {str(status): count for status, count in sorted(hammer(service, INPUTS, has_metrics_port).items())}
