"""`python -m modelfleet.wheel [DIRECTORY]`: build the wheel of this package into DIRECTORY, by default dist/.

It carries copies of the program, the services and what they are built from below `modelfleet/tree`, so they take no names at the top of
anyone's environment. It asks for exactly the versions of requirements.lock, which `try` needs; its extra `up` for those of up.lock, too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from modelfleet import TREE
from modelfleet.environment import BOOTSTRAP, LOCK, pins

PACKAGE = TREE / "modelfleet"
UP_LOCK = PACKAGE / "up.lock"
"""All that the program and its commands need."""
SERVICES = ("api_server", "model_server", "model_sync", "metrics_exporter", "ollama_agent", "image_verifier")
CARRIED = (*SERVICES, "components", "devcluster", "docs", "images", "infra", "modelfleet_outputs", "tools")
_FILES = (".dockerignore", "Pulumi.yaml", "Pulumi.dev.yaml", "Pulumi.prod.yaml", "__main__.py")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "pictures", "site", "build", "*.egg-info")


def lay_out(target: Path) -> None:
    """The sources of the wheel, as pyproject.toml names them."""
    package = target / "modelfleet"
    package.mkdir()
    for path in PACKAGE.glob("*.py"):
        if path.name != Path(__file__).name:
            shutil.copyfile(path, package / path.name)
    for name in CARRIED:
        shutil.copytree(TREE / name, package / "tree" / name, ignore=_LEFT_OUT)
    for name in _FILES:
        shutil.copyfile(TREE / name, package / "tree" / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(PACKAGE / name, target / name)
    (target / "version.txt").write_text(tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["version"])
    (target / "requirements.txt").write_text(_pinned(LOCK))
    # uv installs what images, Go and kubectl come as.
    (target / "up.txt").write_text(_pinned(UP_LOCK) + _pinned(BOOTSTRAP))


def _pinned(lock: Path) -> str:
    return "".join(f"{name}=={version}\n" for name, version in pins(lock.read_text()))


def build(directory: Path) -> Path:
    """The wheel, built without the network by the setuptools of this environment. Raises CalledProcessError."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        source, out = Path(work, "source"), Path(work, "out")
        source.mkdir()
        lay_out(source)
        argv = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(source)]
        # The same sources give the same bytes: a zip's first date.
        subprocess.run(argv, check=True, env=os.environ | {"SOURCE_DATE_EPOCH": "315532800"}, stdout=sys.stderr)
        (wheel,) = out.glob("*.whl")
        return Path(shutil.move(wheel, directory / wheel.name))


def main(arguments: Sequence[str]) -> int:
    print(build(Path(arguments[0]) if arguments else TREE / "dist"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
