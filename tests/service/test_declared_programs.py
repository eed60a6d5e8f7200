"""Every program that a step calls belongs to a declared package: the steps run with a PATH that has no other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devcluster import go
from infra import ROOT
from tests import declared


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With a cache that is empty, so that every step is done."""
    work = tmp_path_factory.mktemp("declared")
    return {**os.environ, "PATH": declared.path(work), "XDG_CACHE_HOME": str(work / "cache")}


def run(environment: dict[str, str], program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_path_has_what_is_declared_and_nothing_else(environment: dict[str, str]) -> None:
    for name in ("gcc", "g++", "ip", "nft", "iptables", "ipset", "mmdebstrap", "runc", "awk", "git", "apt-get"):
        assert shutil.which(name, path=environment["PATH"]), name
    for name in ("curl", "docker", "go", "kubectl", "node", "pulumi"):
        assert not shutil.which(name, path=environment["PATH"]), name


def test_the_pause_image_is_compiled(environment: dict[str, str]) -> None:
    assert "sha256:" in run(environment, "from devcluster import system_images; print(system_images.pause().layers)")


def test_cgo_compiles_and_links_c_and_c_plus_plus(environment: dict[str, str], tmp_path: Path) -> None:
    """As Ollama's build does, with our Go."""
    (tmp_path / "go.mod").write_text("module example.com/cgo\n\ngo 1.26\n")
    (tmp_path / "main.go").write_text(
        'package main\n\n// #include <stdlib.h>\n// int answer(void);\nimport "C"\n\nfunc main() { C.exit(C.answer()) }\n'
    )
    (tmp_path / "answer.cpp").write_text('#include <string>\nextern "C" int answer() { return int(std::string("seven..").size()); }\n')
    settings = {**environment, "CGO_ENABLED": "1", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOCACHE": str(tmp_path / "cache")}
    done = subprocess.run([go.command(), "build", "-o", "tool", "."], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "tool"]).returncode == 7


def test_the_registry_is_fetched_and_unpacked(environment: dict[str, str]) -> None:
    binary = run(environment, "from devcluster import packages; print(packages.registry_binary())").strip()
    assert subprocess.run([binary, "--version"], capture_output=True).returncode == 0


def test_the_base_layer_is_resolved(environment: dict[str, str]) -> None:
    """mmdebstrap, its helpers and its keys, up to where it would unpack."""
    program = """
import subprocess, sys
from pathlib import Path
from devcluster import system_images
with system_images.mmdebstrap(Path("/dev/null"), "--simulate") as argv:
    done = subprocess.run(argv, capture_output=True, text=True)
print(done.stderr)
sys.exit(done.returncode)
"""
    assert "success" in run(environment, program)
