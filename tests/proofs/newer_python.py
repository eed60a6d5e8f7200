"""A Python that is newer than the machine's own: the images have one, and OpenHands' SDK asks for one."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from devcluster import oci
from devcluster.oci import Layer, write_tree

_ABOUT = """
import json, sys, sysconfig
paths, variable = sysconfig.get_paths(), sysconfig.get_config_var
library = [variable("LIBDIR"), variable("MULTIARCH"), variable("INSTSONAME")]
print(json.dumps([sys.executable, paths["stdlib"], paths["include"], paths["purelib"], *library]))
"""
_WITHOUT = ("test", "idlelib", "tkinter", "turtledemo", "lib2to3", "site-packages", "__pycache__")
"""What a server's Python does without, and what somebody installed."""


def find(*versions: str) -> Path:
    """The first that works: PYTHON312, of the PATH, or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    of_pyenv = [str(path) for each in versions for path in sorted(pyenv.glob(f"{each}.*/bin/python{each}"))]
    for candidate in filter(None, (os.environ.get("PYTHON312"), *(shutil.which(f"python{each}") for each in versions), *of_pyenv)):
        command = [candidate, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(command, capture_output=True, text=True).stdout.strip() in versions:
            return Path(candidate)
    raise AssertionError(f"python: got none of {' and '.join(versions)}, want one; install it, or say where it is in PYTHON312")


def layer(python: Path, target: Path) -> Layer:
    """It, with pip and its headers, as it lies below /usr/local of python.org's image."""
    asked = subprocess.run([python, "-I", "-c", _ABOUT], capture_output=True, text=True, check=True).stdout
    executable, stdlib, include, packages, libraries, multiarch, shared = json.loads(asked)
    name = Path(stdlib).name
    files = {f"usr/local/bin/{each}": Path(executable).resolve() for each in (name, "python3", "python")}
    files |= {f"usr/local/lib/{name}/{each.name}": each for each in sorted(Path(stdlib).iterdir()) if each.name not in _WITHOUT}
    files |= {f"usr/local/lib/{name}/site-packages/pip": Path(packages, "pip"), f"usr/local/include/{name}": Path(include)}
    if (library := Path(libraries, shared)).suffix != ".a":
        # Where ld.so looks that has no cache of it.
        files[f"usr/lib/{multiarch}/{shared}"] = library
    write_tree(target, list(files.items()))
    return oci.existing_layer(target)
