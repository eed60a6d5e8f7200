"""The packages that we publish, built and installed as their users do."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(package: str, work: Path) -> Path:
    """The wheel of `package`, from a copy of its directory alone."""
    source = work / f"{package}-source"
    source.mkdir()
    for path in (ROOT / package).iterdir():
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    options = ("-q", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(work), str(source)], check=True, capture_output=True)
    (wheel,) = work.glob("*.whl")
    return wheel


def install(wheel: Path, target: Path) -> None:
    """Into a directory of its own; its dependencies are those of this environment."""
    uv = Path(sys.executable).with_name("uv")
    options = ("--quiet", "--offline", "--no-deps", "--python", sys.executable, "--target", str(target))
    subprocess.run([str(uv), "pip", "install", *options, str(wheel)], check=True, capture_output=True)
