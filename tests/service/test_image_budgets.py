"""What images weigh. images/budgets.toml says how much each may."""

import re
import tomllib
from pathlib import Path

import pytest

from components.images import CONTEXTS
from devcluster.oci import Image
from images import embedded

SPARE = 1.5
"""A budget of more than that much of what there is would hold nothing."""


def budgets() -> dict[str, int]:
    """Image to MiB."""
    return tomllib.loads(Path(embedded.ROOT, "images", "budgets.toml").read_text())["mib"]


@pytest.fixture(scope="module")
def assembled() -> dict[str, Image]:
    return embedded.build()


def test_every_image_has_a_budget() -> None:
    assert set(budgets()) == set(CONTEXTS)


@pytest.mark.timeout(900)
def test_images_keep_to_their_budgets(assembled: dict[str, Image]) -> None:
    sizes = {name: sum(layer.size for layer in image.layers) / 2**20 for name, image in assembled.items()}
    assert {name: size for name, size in sizes.items() if not budgets()[name] / SPARE < size <= budgets()[name]} == {}


def test_the_server_for_cpus_has_nothing_of_gpus() -> None:
    """PyTorch alone would be ten times as much as all of it."""
    lock = Path(embedded.ROOT, "model_server", "requirements.lock").read_text()
    assert not re.findall(r"^(?:torch|vllm|nvidia-cu[a-z0-9-]*|triton)==", lock, re.MULTILINE)
