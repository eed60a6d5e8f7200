"""A model server whose GPU does not answer any more, by what `nvidia-smi` says beside it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from model_server import gpus
from tests.service.conftest import ModelServerFactory
from tests.service.processes import Service
from tests.service.test_model_server import ask

SMI = """#!/bin/sh
[ "$1" = -L ] || exit 2
[ -e {directory}/hangs ] && exec sleep 1000
cat {directory}/says
exit $(cat {directory}/status)
"""


class Smi:
    """A program of that name, which says what it is told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        program = directory / "nvidia-smi"
        program.write_text(SMI.format(directory=directory))
        program.chmod(0o755)
        self.says(0, "GPU 0: NVIDIA H200 (UUID: GPU-0)")

    def says(self, status: int, text: str) -> None:
        (self.directory / "says").write_text(text)
        (self.directory / "status").write_text(str(status))

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.directory}:{os.environ['PATH']}"}


def state(service: Service) -> str:
    return str(httpx.get(f"{service.url}/ready", timeout=10).json()["status"])


def eventually(service: Service, holds: Callable[[str], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not holds(found := state(service)):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_a_gpu_that_is_lost_makes_the_server_unready_until_it_answers(model_server: ModelServerFactory, tmp_path: Path) -> None:
    smi = Smi(tmp_path / "smi")
    service = model_server("tiny:1", process=smi.environment)
    assert state(service) == "ready"
    # A note of its configuration is no loss: 14 is a damaged infoROM.
    smi.says(14, "WARNING: infoROM is corrupted")
    time.sleep(gpus.EACH_S + 1)
    assert state(service) == "ready"
    smi.says(15, "Unable to determine the device handle for GPU0000:65:00.0: GPU is lost.")
    eventually(service, lambda found: "GPU is lost" in found, gpus.EACH_S + 5)
    answer = ask(service)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading"), "the API server asks another one"
    metrics = httpx.get(f"{service.url}/metrics", timeout=10).text
    assert "model_server_engine_up 0.0" in metrics
    assert httpx.get(f"{service.url}/health", timeout=10).status_code == 200, "a restart brings no GPU back"
    smi.says(0, "")
    eventually(service, lambda found: found == "ready", gpus.EACH_S + 5)
    assert ask(service).status_code == 200
    assert "GPU: got Unable to determine the device handle" in service.log.read_text()


def test_a_driver_that_hangs_is_as_good_as_lost(model_server: ModelServerFactory, tmp_path: Path) -> None:
    smi = Smi(tmp_path / "smi")
    (smi.directory / "hangs").touch()
    service = model_server("tiny:1", process=smi.environment)
    eventually(service, lambda found: found == f"no answer within {gpus.PATIENCE_S:g} s", gpus.PATIENCE_S + 5)
    (smi.directory / "hangs").unlink()
    eventually(service, lambda found: found == "ready", gpus.EACH_S + 5)


@pytest.mark.parametrize("status", [1, 127])
def test_a_program_that_fails_otherwise_says_nothing_of_gpus(model_server: ModelServerFactory, tmp_path: Path, status: int) -> None:
    smi = Smi(tmp_path / "smi")
    smi.says(status, "no such option")
    service = model_server("tiny:1", process=smi.environment)
    time.sleep(2)
    assert state(service) == "ready"
