"""Our Dockerfiles as written, built by a real BuildKit through the docker-build provider, as `python -m infra.preparation.images` does."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from components import RuntimeImagesArgs
from components.images import CONTEXTS
from images import embedded
from infra import ROOT
from infra.engine.errors import CliError
from infra.preparation.images import build
from tests.service.buildkit import BUILDER, Builder, builder
from tests.service.test_image_budgets import byte_code

IMAGES = ("ollama", "model-sync", "api-server", "metrics-exporter")
"""Two without and two with a builder stage; the others need packages or models of several hundred megabytes."""


def build_by_a_builder(work: Path, source: Path, images: Sequence[str], look: Callable[[Builder, dict[str, str]], None]) -> dict[str, str]:
    """Digests by a builder without a cache, after a look at what it pushed."""
    work.mkdir()
    with builder(work) as where, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUILDX_CONFIG", str(where.config))
        patch.setenv("DOCKER_CONFIG", str(work / "docker"))
        registry = f"{where.registry}/test"
        args = RuntimeImagesArgs(builder="docker-build", registry=registry, builder_name=BUILDER, source=source, images=images)
        references = build(args, work / "state")
        look(where, references)
    return {name: reference.partition("@")[2] for name, reference in references.items()}


@pytest.mark.timeout(900)
def test_the_same_sources_give_the_same_digests(tmp_path: Path) -> None:
    first, second = (build_by_a_builder(tmp_path / each, ROOT, IMAGES, check) for each in ("first", "second"))
    assert first == second


@pytest.mark.timeout(300)
def test_a_build_that_fails_says_what_its_command_said(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in CONTEXTS["model-sync"]:
        shutil.copytree(ROOT / path, source / path)
    with (source / "images/model-sync/Dockerfile").open("a") as dockerfile:
        # BuildKit tells what is printed some times a second.
        dockerfile.write("RUN echo no room for wheels >&2; sleep 1; exit 7\n")
    with pytest.raises(CliError, match=r"(?s)exit code: 7.*the build ended with:.*\n  no room for wheels"):
        build_by_a_builder(tmp_path / "builder", source, ("model-sync",), lambda *_: None)


def check(buildkit: Builder, first: dict[str, str]) -> None:
    """Every image starts as its Dockerfile says, which is also what the embedded cluster's assembly reads from it."""
    assert set(first) == set(IMAGES)
    for name, reference in first.items():
        assert reference.startswith(f"{buildkit.registry}/test/{name}:src-")
        assert "@sha256:" in reference
        _, config = buildkit.image(reference)
        starts_as_its_dockerfile_says(name, config["config"])
        if name != "ollama":
            has_byte_code(*map(set, buildkit.layers(reference)))


def has_byte_code(debian: set[str], *added: set[str]) -> None:
    """Of our modules, and of Python's own, of which the base of python.org has none: nothing can be written where they run."""
    files = set().union(*added)
    ours = {name for name in files if re.fullmatch(r"app/.*\.py", name)}
    pythons = {name for name in debian if re.fullmatch(r"usr/lib/python3\.\d+/[a-z]+\.py", name)}
    assert ours
    assert pythons
    assert {name for name in ours | pythons if not files & set(byte_code(name))} == set()


def starts_as_its_dockerfile_says(name: str, found: dict[str, Any]) -> None:
    embedded_config = embedded.runtime_config(name)
    assert (found["User"], found["WorkingDir"]) == (embedded_config.user, embedded_config.working_dir)
    assert found["Entrypoint"] == list(embedded_config.entrypoint)
    assert found.get("Cmd", []) == list(embedded_config.cmd)
    assert set(found.get("ExposedPorts", ())) == set(embedded_config.exposed_ports)
    assert {f"{key}={value}" for key, value in embedded_config.env.items()} <= set(found["Env"])
    assert embedded_config.labels.items() <= found["Labels"].items()
