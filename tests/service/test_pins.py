"""`make pins` against a real registry: what it writes is what a build then stands on."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from images import pins
from infra.analysis.policy import dockerfiles
from tests.service import registries
from tests.service.processes import ROOT


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A copy of images/ that a test may change."""
    copy = tmp_path / "images"
    shutil.copytree(ROOT / "images", copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def push(url: str, repository: str, tag: str, number: int) -> str:
    """An index without images; returns its digest."""
    kind = "application/vnd.oci.image.index.v1+json"
    body = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [], "annotations": {"number": str(number)}}).encode()
    httpx.put(f"{url}/v2/{repository}/manifests/{tag}", content=body, headers={"Content-Type": kind}, timeout=10).raise_for_status()
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def ask(images: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, on the copy."""
    code = "import sys; from pathlib import Path; from images import pins; sys.exit(pins.main(sys.argv[2:], Path(sys.argv[1])))"
    return subprocess.run([sys.executable, "-c", code, str(images), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_digests_of_tags_are_written_where_builds_read_them(images: Path, tmp_path: Path) -> None:
    assert pins.unpinned(["api-server", "ollama"], images) == ["ollama/ollama", "python"]
    with registries.serving(tmp_path) as address:
        url = f"http://{address}"
        known = {
            name: push(url, name if "/" in name else f"library/{name}", pin["tag"], number)
            for number, (name, pin) in enumerate(pins.bases(images).items())
        }
        done = ask(images, "--mirror", url)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(" -> sha256:") == len(known)
        assert ask(images, "--mirror", url).stdout == "every digest is as it was\n"
        # A tag that moved, and a model, whose registry speaks the same.
        known["debian"] = push(url, "library/debian", pins.bases(images)["debian"]["tag"], 99)
        assert re.fullmatch(r"debian:\S+: sha256:\w+ -> sha256:\w+\n", ask(images, "--mirror", url).stdout)
        model = push(url, "library/qwen3-coder", "30b", 7)
        said = ask(images, "registry.ollama.ai/library/qwen3-coder:30b", "--mirror", url).stdout
        assert said == f"registry.ollama.ai/library/qwen3-coder:30b: {model}\n"
        refused = ask(images, "registry.ollama.ai/library/nothing:1", "--mirror", url)
        assert (refused.returncode, refused.stderr) == (
            1,
            "error: registry.ollama.ai/library/nothing:1: got no such tag, want one; correct it\n",
        )
    found = pins.bases(images)
    assert {name: pin["digest"] for name, pin in found.items()} == known
    assert pins.unpinned(["api-server", "ollama"], images) == []
    for dockerfile in images.glob("*/Dockerfile"):
        assert dockerfiles.bases_are_pinned(dockerfile.read_text(), found) == []
        assert "@sha256:" in dockerfile.read_text()
