"""Stand-ins for the bases of our Dockerfiles, which no registry here serves, and a copy of what images are built from.

Each stand-in has what the lines after it need, so apt, pip and Python really run: Debian 12 with Python 3.12 where python.org's image has
it and for CUDA's Ubuntu, Debian 12 for Ollama's, Debian 13 for itself. Of CUDA there is nothing but what wheels bring.
"""

import shutil
from pathlib import Path

from components.images import CONTEXTS
from devcluster import oci
from devcluster.oci import Image, Layer, RuntimeConfig, assemble
from infra import ROOT
from tests.proofs import newer_python
from tests.proofs.empty_debian import bootstrap
from tests.service import buildkit

GUARDS = tuple(f"tests/{name}.py" for name in ("service/buildkit", "proofs/stand_ins", "proofs/newer_python", "proofs/empty_debian"))
_PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def bases(work: Path) -> list[Image]:
    """One for each base of pins.toml."""

    def debian(suite: str, packages: str) -> Layer:
        target = work / f"{suite}.tar"
        bootstrap(suite, target, packages, [], work / f"{suite}-scratch")
        return oci.existing_layer(target)

    # What the wheels' Python is linked with comes with Debian's own.
    bookworm, trixie = debian("bookworm", "ca-certificates,python-is-python3"), debian("trixie", "ca-certificates")
    python = newer_python.layer(newer_python.find("3.12"), work / "python312.tar")
    return [
        buildkit.python(work, bookworm, python),
        buildkit.ollama(work, bookworm),
        buildkit.cuda(work, bookworm, python),
        assemble("debian", [trixie], RuntimeConfig(env=_PATH)),
    ]


def source(work: Path) -> Path:
    """What images are built from, to be changed."""
    shutil.copy(ROOT / ".dockerignore", work)
    for path in {context for contexts in CONTEXTS.values() for context in contexts}:
        shutil.copytree(ROOT / path, work / path, ignore=shutil.ignore_patterns("__pycache__"))
    return work
