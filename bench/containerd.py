"""What a node has of images: containerd, which pulls them from a registry on loopback. For the super-user."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.processes import started, wait_for
from devcluster import oci, toolchain
from devcluster.oci import Image
from tests.service import registries
from tests.service.processes import free_port

_ZIPPED = "application/vnd.oci.image.layer.v1.tar+gzip"
_STEP_S = 1800


@dataclass(frozen=True)
class Node:
    registry: str
    storage: Path
    """The registry's files."""
    _ctr: Sequence[str]

    def publish(self, image: Image, archives: Mapping[str, Path]) -> str:
        """Push an image with layers in gzip, as registries have them, and say its reference. `archives`: by the digest of each layer."""
        layers = [oci.existing_layer(archives[layer.digest]) for layer in image.layers]
        manifest = json.loads(image.manifest)
        manifest["layers"] = [{"mediaType": _ZIPPED, "digest": layer.digest, "size": layer.size} for layer in layers]
        zipped = replace(image, layers=layers, manifest=json.dumps(manifest).encode())
        oci.push(zipped, self.registry, "latest")
        return f"{self.registry}/{oci.repository(image.name)}@{zipped.digest}"

    def have(self, reference: str) -> None:
        """Pull an image that is not here, as a node does that starts a container of it."""
        if not self._said("images", "ls", "-q", f"name=={reference}").strip():
            self._said("images", "pull", "--local", "--plain-http", reference)

    def forget(self) -> None:
        """As a new node: no image, no layer."""
        if found := self._said("images", "ls", "-q").split():
            self._said("images", "rm", "--sync", *found)

    @contextmanager
    def mounted(self, reference: str, target: Path) -> Iterator[Path]:
        """Its files, to be read."""
        target.mkdir(exist_ok=True)
        self._said("images", "mount", reference, str(target))
        try:
            yield target
        finally:
            self._said("images", "unmount", "--rm", str(target))

    def _said(self, *command: str) -> str:
        done = subprocess.run([*self._ctr, *command], capture_output=True, text=True, timeout=_STEP_S)
        if done.returncode:
            raise OSError(f"ctr {' '.join(command)}: got {done.stderr.strip()[-500:]!r}, want success; see the log of containerd")
        return done.stdout


@contextmanager
def running_node(work: Path) -> Iterator[Node]:
    """Until the block ends. Raises SystemExit or AssertionError when a part of it does not come up."""
    binaries = toolchain.ensure(["containerd"])
    socket, metrics, storage = work / "containerd.sock", f"127.0.0.1:{free_port()}", work / "registry"
    (work / "containerd").mkdir(parents=True)
    (work / "containerd.toml").write_text(
        f"""version = 3
root = "{work / "containerd" / "root"}"
state = "{work / "containerd" / "state"}"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.grpc.v1.cri"]
[plugins."io.containerd.server.v1.grpc"]
  address = "{socket}"
[plugins."io.containerd.server.v1.metrics"]
  address = "{metrics}"
"""
    )
    env = {"PATH": f"{binaries}:{os.environ['PATH']}", "OTEL_TRACES_EXPORTER": "none"}
    argv = [str(binaries / "containerd"), "--config", str(work / "containerd.toml")]
    with registries.serving(work, directory=storage) as address, started(argv, env, work / "containerd") as process:
        wait_for(f"http://{metrics}/v1/metrics", process, work / "containerd" / "log")
        yield Node(address, storage, (str(binaries / "ctr"), f"--address={socket}"))
