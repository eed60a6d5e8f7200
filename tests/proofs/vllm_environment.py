"""A virtual environment with vLLM: its packages are of other versions than ours."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proofs.records import ROOT


@pytest.fixture(scope="session")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of a virtual environment with vLLM and transformers."""
    uv, target = Path(sys.executable).parent / "uv", tmp_path_factory.mktemp("vllm") / "venv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, target], check=True)
    lock = ROOT / "tests" / "proofs" / "vllm.lock"
    # The lock has all that is wanted; what the packages want of each other includes a torch that PyPI has not.
    argv = [uv, "pip", "install", "-q", "--python", target / "bin" / "python", "--require-hashes", "--no-deps", "-r", lock]
    subprocess.run(argv, check=True)
    yield target / "bin" / "python"
    shutil.rmtree(target)
