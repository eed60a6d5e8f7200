"""Every Dockerfile as written: in a real BuildKit, as docker-build does it, and by a real Docker daemon, told what pulumi-docker is told.

20 minutes. The bases are stand-ins (stand_ins.py). Of the locks of PyTorch and vLLM, whose wheels are 6 GB, each build gets the few lines
of small packages; the proof `image-wheels` installs them all.
"""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from components import RuntimeImages, RuntimeImagesArgs
from components.images import BASES, CONTEXTS
from devcluster import oci
from devcluster.oci import Image, Layer
from images import pins
from infra import ROOT
from infra.preparation.images import build
from tests import machine
from tests.component.harness import render
from tests.proofs import stand_ins, ways
from tests.proofs.docker_daemon import Docker, docker
from tests.proofs.records import Proof
from tests.service import buildkit, registries
from tests.service.conftest import await_valkey, valkey_conf
from tests.service.processes import free_port
from tests.service.test_cache_users import DONE, a_role_does_its_own_and_nothing_else
from tests.service.test_image_budgets import budgets
from tests.service.test_image_builds import starts_as_its_dockerfile_says

PROOF = Proof(
    "images",
    guards=(
        *("images", ".dockerignore", "components/images.py", "infra/preparation/images.py", "image_verifier", *ways.SERVICES),
        *("tests/proofs/docker_daemon.py", *stand_ins.GUARDS),
    ),
)
_PUSHED = "the digest of what was pushed"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    return stand_ins.bases(tmp_path_factory.mktemp("bases"))


SMALL = {
    "images/python-base/base.lock": ("filelock", "packaging"),
    "images/model-server-vllm/engine.lock": ("filelock", "packaging", "six", "nvidia-nvtx"),
}
"""Lock to the packages of it that are installed here."""


def cut(text: str, names: Sequence[str]) -> str:
    """The lines of a lock that are of these packages."""
    entries = re.findall(r"^\S+==(?:.*\\\n)(?:    --hash=.*\n)+", text, re.MULTILINE)
    return "".join(entry for entry in entries if entry.partition("==")[0] in names)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What images are built from, with the cut locks."""
    work = stand_ins.source(tmp_path_factory.mktemp("source"))
    for lock, names in SMALL.items():
        short = cut((work / lock).read_text(), names)
        assert short.count("==") == len(names)
        (work / lock).write_text(short)
    return work


def test_every_base_has_a_stand_in(bases: list[Image]) -> None:
    assert {base.name for base in bases} == set(pins.bases())


@pytest.mark.timeout(2400)
def test_buildkit_runs_every_line_of_every_dockerfile(bases: list[Image], source: Path, tmp_path: Path, figures: dict[str, Any]) -> None:
    packed = {layer.digest: compressed_bytes(layer) for base in bases for layer in base.layers}
    with buildkit.builder(tmp_path, bases) as where, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUILDX_CONFIG", str(where.config))
        patch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        args = RuntimeImagesArgs(builder="docker-build", registry=f"{where.registry}/test", builder_name=buildkit.BUILDER, source=source)
        references = build(args, tmp_path / "state")
        assert set(references) == set(CONTEXTS)
        found = {name: where.image(reference) for name, reference in references.items()}
        for name, (manifest, config) in found.items():
            starts_as_its_dockerfile_says(name, config["config"])
            # Here without PyTorch and CUDA: it cannot be more than the whole may be.
            assert sum(packed.get(str(layer["digest"]), int(layer["size"])) for layer in manifest["layers"]) < budgets()[name] * 2**20
            figures.setdefault("lines that ran", {})[name] = len(re.findall(r"^RUN ", dockerfile(name).read_text(), re.MULTILINE))
        for name, base in BASES.items():
            layers = [[layer["digest"] for layer in found[each][0]["layers"]] for each in (base, name)]
            assert layers[1][: len(layers[0])] == layers[0], "what it stands on is pulled once"


def compressed_bytes(layer: Layer) -> int:
    """As registries keep it. Those of the stand-ins are pushed as they are."""
    return len(gzip.compress(layer.path.read_bytes(), compresslevel=6))


def dockerfile(name: str) -> Path:
    return ROOT / "images" / name / "Dockerfile"


def asked_of_pulumi_docker(registry: str, source: Path) -> dict[str, dict[str, Any]]:
    """What the component gives to pulumi-docker's Image, by the image's name. Its plugin cannot be had here, so Pulumi's mocks take it."""
    args = RuntimeImagesArgs(builder="docker", registry=registry, source=source)
    pushed = {"docker:index/image:Image": {"repoDigest": _PUSHED}}
    found = {item["imageName"]: item for item in render(lambda: RuntimeImages("images", args), outputs=pushed).kind("Image")}
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
def test_a_docker_daemon_builds_and_pushes_what_pulumi_docker_is_told(
    bases: list[Image], source: Path, tmp_path: Path, figures: dict[str, Any]
) -> None:
    before = machine.snapshot()
    with registries.serving(tmp_path) as registry:
        for base in bases:
            oci.push(base, registry, pins.bases()[base.name]["tag"])
        asked, made = asked_of_pulumi_docker(f"{registry}/test", source), dict[str, str]()
        assert set(asked) == set(CONTEXTS)
        with docker(registry) as client:
            figures["docker"] = client.run("version", "--format", "{{.Server.Version}}").strip()
            for name, item in asked.items():
                tag, told = item.pop("imageName"), item.pop("build")
                # All else is pulumi-docker's default, or this would not be what it is told.
                assert item == {"buildOnPreview": False, "skipPush": False}
                assert told.keys() == {"context", "dockerfile", "platform", *(["args"] if name in BASES else [])}
                assert told.get("args", {}) == ({"BASE": _PUSHED} if name in BASES else {})
                given = ["--build-arg", f"BASE={made[BASES[name]]}"] if name in BASES else []
                argv = [*given, "--file", told["dockerfile"], "--platform", told["platform"], told["context"]]
                # The daemon has no bridge.
                client.run("build", "--network", "host", "--tag", tag, *argv)
                client.run("push", tag)
                [image] = json.loads(client.run("image", "inspect", tag))
                starts_as_its_dockerfile_says(name, {key: value or [] for key, value in image["Config"].items()})
                [reference] = image["RepoDigests"]
                assert reference.startswith(f"{registry}/test/{name}@sha256:")
                made[name] = reference
            figures["valkey"] = users_hold_in(client, f"{registry}/test/cache-server", tmp_path / "valkey")
    changed = machine.difference(before, machine.snapshot())
    assert [line for lines in changed.values() for line in lines if "docker" in line] == []
