"""The images for GPUs with all of their wheels, 6 GB, in a real BuildKit: what a node keeps of them, and that it works together.

25 minutes and 45 GB of disk. The bases are stand-ins (stand_ins.py). Behind the lines of each Dockerfile a further one runs as the fleet's
user: tests/proofs/wheels imports what the image is for, and compiles what a first start on a GPU compiles. No kernel runs.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from components import RuntimeImagesArgs
from infra import ROOT
from infra.preparation.images import build
from tests.proofs import stand_ins
from tests.proofs.records import Proof
from tests.service import buildkit
from tests.service.test_image_budgets import SPARE, budgets
from tests.service.test_image_builds import starts_as_its_dockerfile_says

PROOF = Proof(
    "image-wheels",
    guards=(
        *(f"images/{name}" for name in ("cuda-base", "python-base", "model-server-vllm", "pins.toml", "budgets.toml")),
        *(
            "tests/proofs/wheels",
            "components/images.py",
            "infra/preparation/images.py",
            "model_server/requirements.lock",
            "model_server/vllm.py",
            *stand_ins.GUARDS,
        ),
    ),
)
LOOKED_AT = {
    "python-base": ("/opt/python/bin/python /look/packages.py",),
    "model-server-vllm": ("/opt/python/bin/python /look/packages.py", "python3 /look/engine.py"),
}
"""Image to what runs in it when it is made."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = stand_ins.source(tmp_path_factory.mktemp("source"))
    shutil.copytree(ROOT / "tests" / "proofs" / "wheels", work / "look", ignore=shutil.ignore_patterns("__pycache__"))
    with (work / ".dockerignore").open("a") as allowed:
        allowed.write("\n!look\n")
    for image, commands in LOOKED_AT.items():
        with (work / "images" / image / "Dockerfile").open("a") as dockerfile:
            dockerfile.writelines(f"RUN --mount=type=bind,source=look,target=/look {command}\n" for command in commands)
    return work


@pytest.mark.timeout(3600)
def test_what_a_gpu_node_pulls_is_whole_and_keeps_to_its_budget(
    source: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, figures: dict[str, Any]
) -> None:
    bases = stand_ins.bases(tmp_path_factory.mktemp("bases"))
    with buildkit.builder(tmp_path, bases) as where, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUILDX_CONFIG", str(where.config))
        patch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        args = RuntimeImagesArgs(
            builder="docker-build",
            registry=f"{where.registry}/test",
            builder_name=buildkit.BUILDER,
            source=source,
            images=("cuda-base", *LOOKED_AT),
        )
        references = build(args, tmp_path / "state")
        layers = {name: where.layers(reference) for name, reference in references.items()}
        for name, reference in references.items():
            manifest, config = where.image(reference)
            starts_as_its_dockerfile_says(name, config["config"])
            kept = sum(sum(layer.values()) for layer in layers[name]) / 2**20
            pulled = sum(layer["size"] for layer in manifest["layers"]) / 2**20
            figures[name] = {"MiB kept": round(kept), "MiB pulled": round(pulled), "MiB budget": budgets()[name]}
    for name in LOOKED_AT:
        assert budgets()[name] / SPARE < figures[name]["MiB kept"] <= budgets()[name]
    below, above = (layers[name] for name in LOOKED_AT)
    assert above[: len(below)] == below, "what it stands on is pulled once"
    kept_below, added = (
        {file for layer in each for file, size in layer.items() if size and file.startswith("opt/python/lib/")}
        for each in (below, above[len(below) :])
    )
    assert kept_below & added == set(), "a node would have it twice"
