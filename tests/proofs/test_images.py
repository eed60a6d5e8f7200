"""Every Dockerfile as written: in a real BuildKit, as docker-build does it, and by a real Docker daemon, told what pulumi-docker is told.

20 minutes. The bases are stand-ins, each with what the lines after it need: Debian 12 with Python 3.11 for python, Debian 12 for CUDA's
Ubuntu and for Ollama's, Debian 13 for itself. So apt, pip and Python really run, and of CUDA there is nothing.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from components import RuntimeImages, RuntimeImagesArgs
from components.images import CONTEXTS
from devcluster import oci
from devcluster.oci import Image, Layer, RuntimeConfig, assemble
from images import pins
from infra import ROOT
from infra.preparation.images import build
from tests import machine
from tests.component.harness import render
from tests.proofs import ways
from tests.proofs.docker_daemon import Docker, docker
from tests.proofs.empty_debian import bootstrap
from tests.proofs.records import Proof
from tests.service import buildkit, registries
from tests.service.conftest import await_valkey, valkey_conf
from tests.service.processes import free_port
from tests.service.test_cache_users import DONE, a_role_does_its_own_and_nothing_else
from tests.service.test_image_builds import starts_as_its_dockerfile_says

PROOF = Proof(
    "images",
    guards=(
        *("images", ".dockerignore", "components/images.py", "infra/preparation/images.py", "image_verifier", *ways.SERVICES),
        *("tests/service/buildkit.py", "tests/proofs/docker_daemon.py", "tests/proofs/empty_debian.py"),
    ),
)
_PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    """A stand-in for each base of pins.toml."""
    work = tmp_path_factory.mktemp("bases")

    def debian(suite: str, packages: str) -> Layer:
        target = work / f"{suite}.tar"
        bootstrap(suite, target, packages, [], work / f"{suite}-scratch")
        return oci.existing_layer(target)

    bookworm, trixie = debian("bookworm", "ca-certificates,python-is-python3"), debian("trixie", "ca-certificates")
    # What NVIDIA's image asks of a node, and ours must not.
    cuda = RuntimeConfig(env={**_PATH, "NVIDIA_VISIBLE_DEVICES": "all"})
    return [
        buildkit.python(work, bookworm),
        buildkit.ollama(work, bookworm),
        assemble("nvidia/cuda", [bookworm], cuda),
        assemble("debian", [trixie], RuntimeConfig(env=_PATH)),
    ]


def test_every_base_has_a_stand_in(bases: list[Image]) -> None:
    assert {base.name for base in bases} == set(pins.bases())


@pytest.mark.timeout(2400)
def test_buildkit_runs_every_line_of_every_dockerfile(bases: list[Image], tmp_path: Path, figures: dict[str, Any]) -> None:
    with buildkit.builder(tmp_path, bases) as where, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUILDX_CONFIG", str(where.config))
        patch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        args = RuntimeImagesArgs(builder="docker-build", registry=f"{where.registry}/test", builder_name=buildkit.BUILDER, source=ROOT)
        references = build(args, tmp_path / "state")
        assert set(references) == set(CONTEXTS)
        for name, reference in references.items():
            starts_as_its_dockerfile_says(name, where.image(reference)[1]["config"])
            figures.setdefault("lines that ran", {})[name] = len(re.findall(r"^RUN ", dockerfile(name).read_text(), re.MULTILINE))


def dockerfile(name: str) -> Path:
    return ROOT / "images" / name / "Dockerfile"


def asked_of_pulumi_docker(registry: str) -> dict[str, dict[str, Any]]:
    """What the component gives to pulumi-docker's Image, by the image's name. Its plugin cannot be had here, so Pulumi's mocks take it."""
    args = RuntimeImagesArgs(builder="docker", registry=registry, source=ROOT)
    found = {item["imageName"]: item for item in render(lambda: RuntimeImages("images", args)).kind("Image")}
    return {name.rpartition("/")[2].partition(":")[0]: item for name, item in found.items()}


def users_hold_in(client: Docker, repository: str, work: Path) -> str:
    """The cache server's users, as the image has the server: Debian's, which is older than the embedded cluster's. Returns its version."""
    work.mkdir()
    port = free_port()
    conf = valkey_conf(work, port)
    image = client.run("images", "--quiet", repository).split()[0]
    name = client.run("run", "--detach", "--network", "host", "--volume", f"{work}:{work}:ro", image, str(conf)).strip()
    try:
        await_valkey(port)
        for role in DONE:
            a_role_does_its_own_and_nothing_else(f"redis://127.0.0.1:{port}/0", role)
        return client.run("exec", name, "valkey-server", "--version").split()[2]
    finally:
        client.run("rm", "--force", name)


@pytest.mark.timeout(2400)
def test_a_docker_daemon_builds_and_pushes_what_pulumi_docker_is_told(bases: list[Image], tmp_path: Path, figures: dict[str, Any]) -> None:
    before = machine.snapshot()
    with registries.serving(tmp_path) as registry:
        for base in bases:
            oci.push(base, registry, pins.bases()[base.name]["tag"])
        asked = asked_of_pulumi_docker(f"{registry}/test")
        assert set(asked) == set(CONTEXTS)
        with docker(registry) as client:
            figures["docker"] = client.run("version", "--format", "{{.Server.Version}}").strip()
            for name, item in asked.items():
                tag, told = item.pop("imageName"), item.pop("build")
                # All else is pulumi-docker's default, or this would not be what it is told.
                assert item == {"buildOnPreview": False, "skipPush": False}
                assert told.keys() == {"context", "dockerfile", "platform"}
                argv = ["--file", told["dockerfile"], "--platform", told["platform"], told["context"]]
                # The daemon has no bridge.
                client.run("build", "--network", "host", "--tag", tag, *argv)
                client.run("push", tag)
                [image] = json.loads(client.run("image", "inspect", tag))
                starts_as_its_dockerfile_says(name, {key: value or [] for key, value in image["Config"].items()})
                [reference] = image["RepoDigests"]
                assert reference.startswith(f"{registry}/test/{name}@sha256:")
            figures["valkey"] = users_hold_in(client, f"{registry}/test/cache-server", tmp_path / "valkey")
    changed = machine.difference(before, machine.snapshot())
    assert [line for lines in changed.values() for line in lines if "docker" in line] == []
