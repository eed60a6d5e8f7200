"""What images weigh, and that a service need not compile itself. images/budgets.toml says how much each may weigh."""

import re
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from components.images import CONTEXTS
from devcluster.oci import Image
from devcluster.system_images import PYTHON
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


@pytest.mark.timeout(900)
def test_every_module_of_ours_comes_with_byte_code(assembled: dict[str, Image]) -> None:
    """A root that is read-only takes none: each start would compile them again. A machine with another Python can make none for them."""
    made, modules = f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON, 0
    for image in assembled.values():
        names = {name for layer in image.layers for name in names_in(layer.path)}
        ours = {name for name in names if name.startswith("app/") and name.endswith(".py")}
        modules += len(ours)
        assert {name for name in ours if bool(names & set(byte_code(name))) != made} == set()
    assert modules > 100


def names_in(layer: Path) -> list[str]:
    with tarfile.open(layer) as archive:
        return archive.getnames()


def byte_code(name: str) -> tuple[str, str]:
    """Where that of a module is, for the Python of either base."""
    directory, _, file = name.rpartition("/")
    before, after = (f"{directory}/__pycache__/{file.removesuffix('.py')}.cpython-{each}.pyc" for each in (311, 312))
    return before, after


def test_the_server_for_cpus_has_nothing_of_gpus() -> None:
    """PyTorch alone would be ten times as much as all of it."""
    lock = Path(embedded.ROOT, "model_server", "requirements.lock").read_text()
    assert not re.findall(r"^(?:torch|vllm|nvidia-cu[a-z0-9-]*|triton)==", lock, re.MULTILINE)
