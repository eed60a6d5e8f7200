"""A real BuildKit and a real registry on loopback, with stand-ins for the bases that no registry here serves."""

import json
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from devcluster import oci, toolchain
from devcluster.oci import Image, Layer, RuntimeConfig, assemble, write_tree
from devcluster.system_images import base_layer
from images import pins
from tests.service import registries

BUILDER = "modelfleet-test"
_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""httpx has no stream that tarfile could read."""
_PIP = '#!/bin/sh\nexec python3 -m pip "$@"\n'


@dataclass(frozen=True)
class Builder:
    registry: str
    """Host and port; plain HTTP."""
    config: Path
    """Directory of a buildx configuration that knows BUILDER."""

    def image(self, reference: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Manifest and configuration of `registry/name@digest`."""
        _, _, digest = reference.partition("@")
        with self._client(reference) as client:
            manifest = client.get(f"manifests/{digest}", headers={"Accept": oci.MANIFEST}).raise_for_status().json()
            return manifest, client.get(f"blobs/{manifest['config']['digest']}").raise_for_status().json()

    def layers(self, reference: str) -> list[dict[str, int]]:
        """Of each layer, file to bytes, without a slash in front. Read as it comes: a layer may be larger than the memory."""
        manifest, _ = self.image(reference)
        found: list[dict[str, int]] = []
        for layer in manifest["layers"]:
            with (
                _DIRECT.open(f"{self._url(reference)}blobs/{layer['digest']}") as content,
                tarfile.open(fileobj=content, mode="r|*") as archive,
            ):
                found.append({entry.name.removeprefix("./"): entry.size for entry in archive})
        return found

    def _client(self, reference: str) -> httpx.Client:
        return httpx.Client(base_url=self._url(reference), trust_env=False)

    def _url(self, reference: str) -> str:
        name = reference.rpartition("/")[2].partition("@")[0].partition(":")[0]
        return f"http://{self.registry}/v2/test/{name}/"


def _layer(path: Path, files: dict[str, Path]) -> Layer:
    write_tree(path, list(files.items()))
    return oci.existing_layer(path)


def authorities() -> tuple[dict[str, Path], dict[str, str]]:
    """The machine's certificates as files of an image, and the variables by which pip finds them there."""
    found = {"etc/ssl/certs/ca-certificates.crt": _CA_BUNDLE} if _CA_BUNDLE.exists() else {}
    return found, {"PIP_CERT": str(_CA_BUNDLE)} if found else {}


def cuda(work: Path, *debian: Layer) -> Image:
    """A Debian that asks a node for what NVIDIA's image asks for, and ours must not. Of CUDA it has nothing."""
    files, env = authorities()
    layers = [*debian, _layer(work / "cuda.tar", files)] if files else debian
    path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    return assemble("nvidia/cuda", layers, RuntimeConfig(env={**path, "NVIDIA_VISIBLE_DEVICES": "all", **env}))


def python(work: Path, *debian: Layer) -> Image:
    """Python with pip, and the machine's certificates: what the Dockerfiles ask of python:3.12-slim-bookworm. Debian's own is one older."""
    script = work / "pip"
    script.write_text(_PIP)
    script.chmod(0o755)
    packages = Path(sys.prefix, "lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages", "pip")
    trusted, env = authorities()
    files = {"usr/local/bin/pip": script, "usr/lib/python3/dist-packages/pip": packages, **trusted}
    env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    layers = [*debian, _layer(work / "python.tar", files)]
    return assemble("python", layers, RuntimeConfig(env=env, cmd=["python3"]))


def ollama(work: Path, debian: Layer) -> Image:
    """Ollama's server without its GPU libraries."""
    binary = toolchain.ensure(["ollama"]) / "ollama"
    layers = [debian, _layer(work / "ollama.tar", {"usr/bin/ollama": binary})]
    return assemble("ollama/ollama", layers, RuntimeConfig(entrypoint=["/bin/ollama"], cmd=["serve"]))


def _wait(process: "subprocess.Popen[bytes]", ready: Path, log: Path, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def remove_groups(name: str) -> None:
    """runc leaves the control group that its containers were in; one that another builder uses stays."""
    root = Path("/sys/fs/cgroup")
    for base in (root / name, *(path / name for path in root.iterdir())):
        for group in [*sorted((path for path in base.rglob("*") if path.is_dir()), reverse=True), base]:
            with suppress(OSError):
                group.rmdir()


@contextmanager
def builder(work: Path, bases: Sequence[Image] = ()) -> Iterator[Builder]:
    """A builder, and a registry with stand-ins for bases of our Dockerfiles, until the block ends."""
    with registries.serving(work) as address:
        for base in bases or (python(work, base_layer()), ollama(work, base_layer())):
            oci.push(base, address, pins.bases()[base.name]["tag"])
        socket, log = work / "buildkitd.sock", work / "buildkitd.log"
        (work / "buildkitd.toml").write_text(
            f'root = "{work / "buildkit"}"\n[grpc]\naddress = ["unix://{socket}"]\n'
            '[worker.oci]\nenabled = true\nnetworkMode = "host"\nbinary = "runc"\n[worker.containerd]\nenabled = false\n'
            f'[registry."docker.io"]\nmirrors = ["{address}"]\n[registry."{address}"]\nhttp = true\n'
        )
        instances = work / "buildx" / "instances"
        instances.mkdir(parents=True)
        node = {"Name": f"{BUILDER}0", "Endpoint": f"unix://{socket}", "Platforms": None, "DriverOpts": None, "Flags": None, "Files": None}
        (instances / BUILDER).write_text(json.dumps({"Name": BUILDER, "Driver": "remote", "Nodes": [node], "Dynamic": False}))
        argv = [str(toolchain.ensure(["buildkit"]) / "buildkitd"), "--config", str(work / "buildkitd.toml")]
        with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as daemon:
            try:
                _wait(daemon, socket, log)
                yield Builder(address, work / "buildx")
            finally:
                daemon.terminate()
                daemon.wait(30)
                remove_groups("buildkit")
