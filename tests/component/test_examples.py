"""The example of each component, in this repository and from the installed package alone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import wheel
from tests.component import examples


@pytest.mark.parametrize("name", examples.COMPONENTS)
def test_the_example_of_a_component_runs(name: str) -> None:
    examples.run(name)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build("components", tmp_path_factory.mktemp("wheel"))


def test_the_package_has_every_module_and_nothing_else(built: Path) -> None:
    modules = {path.name for path in (wheel.ROOT / "components").glob("*.py")}
    found = {name.removeprefix("modelfleet_components/") for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}
    assert found == modules | {"py.typed"}


def test_the_examples_run_from_the_installed_package_alone(built: Path, tmp_path: Path) -> None:
    """In a directory from which nothing of this repository can be imported but the two files that run them."""
    installed, outside = tmp_path / "installed", tmp_path / "outside"
    wheel.install(built, installed)
    for module in ("harness.py", "examples.py"):
        target = outside / "tests" / "component" / module
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((Path(__file__).parent / module).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "tests.component.examples"],
        cwd=outside,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(installed / "modelfleet_components" / "__init__.py"), *examples.COMPONENTS], done.stderr
