"""docs/licences.md: what the images and the embedded cluster are made of, and under which licences it comes."""

import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from infra import ROOT

_LOCKS = ("api_server", "model_server", "metrics_exporter", "ollama_agent", "image_verifier", "modelfleet")
_SHORT = 60
"""Characters. Longer than that, the field holds the text of a licence instead of its name."""
_INTRODUCTION = """# Licences of others

Made by `python -m infra.documentation`; a test compares the two. The owner has not chosen a licence for this project itself yet.

## Not in Python

| what | where it goes | licence |
| --- | --- | --- |
| Kubernetes, etcd, containerd, CoreDNS, kube-router, local-path-provisioner, Pulumi and its Kubernetes provider | compiled from `tools/` \
for the embedded cluster; in no image | Apache-2.0 |
| Ollama, with llama.cpp | image `ollama` | MIT |
| Prometheus, from Debian | image `prometheus` | Apache-2.0 |
| BuildKit, cosign, syft, grype, kwok, NVIDIA's container toolkit | compiled from `tools/` for tests alone | Apache-2.0 |
| CRI-O | compiled from `tools/` for an embedded cluster with it; in no image | Apache-2.0 |
| Valkey | image `cache-server` | BSD-3-Clause |
| Debian's packages, Python (PSF-2.0) among them | the images' base layer | each its own, in `/usr/share/doc/*/copyright` of the image |
| CUDA's base image | image `cuda-base`, for those who build it | NVIDIA's Deep Learning Container License |
| SmolLM2 135M | fetched at the first `make up`; in no image that we publish | Apache-2.0 |

## Python packages of the services' images

| package | licence |
| --- | --- |
"""


def _names() -> list[str]:
    """Packages of every service's lock."""
    locks = [(ROOT / service / "requirements.lock").read_text() for service in _LOCKS]
    return sorted({name.lower() for lock in locks for name in re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==", lock, re.MULTILINE)})


def _licence(package: str) -> str:
    """What the package says of itself."""
    try:
        # A message of the mail format, which the type of the library does not say.
        about: Any = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return "in the package"
    classified = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License :: ")]
    short = (about.get("License") or "").strip()
    written = short if len(short) <= _SHORT else ""
    return about.get("License-Expression") or written or " or ".join(classified) or "in the package"


def _rows() -> Iterator[str]:
    for name in _names():
        yield f"| {name} | {_licence(name)} |"


def document() -> str:
    """The whole page."""
    return _INTRODUCTION + "\n".join(_rows()) + "\n"
