"""Our node configuration is what NVIDIA's own tool writes."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from components import node_runtime
from components.node_runtime import Mode
from devcluster import toolchain

MAIN_FILES = {
    ("containerd", False): "version = 3\n",
    ("containerd-1", False): "version = 2\n",
    ("containerd", True): "version = 3\n"
    '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
    '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]\nSystemdCgroup = true\n',
    ("containerd-1", True): "version = 2\n"
    '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
    '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\nSystemdCgroup = true\n',
}
"""What a node's containerd is configured with before, by configuration version and cgroup driver."""


@pytest.fixture(scope="session")
def nvidia_ctk() -> Path:
    return toolchain.ensure(["nvidia-container-toolkit"]) / "nvidia-ctk"


def configure(nvidia_ctk: Path, runtime: str, main_file: Path, mode: str, handler: str) -> dict[str, Any]:
    """The drop-in that `nvidia-ctk runtime configure` would write."""
    argv = [nvidia_ctk, "runtime", "configure", f"--runtime={runtime}", "--config-source=file", f"--config={main_file}"]
    argv += [f"--nvidia-runtime-name={handler}", "--dry-run", *(["--cdi.enabled"] if mode == "cdi" else [])]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    # containerd's drop-in comes first, then the main file with its imports; what is between is for people.
    return tomllib.loads(re.split(r"^imports = ", done.stdout, maxsplit=1, flags=re.MULTILINE)[0])


@pytest.mark.parametrize("handler", ["nvidia", "gpu"])
@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize(("runtime", "systemd_cgroup"), MAIN_FILES)
def test_the_containerd_drop_in_is_that_of_the_toolkit(
    nvidia_ctk: Path, tmp_path: Path, runtime: Any, systemd_cgroup: bool, mode: Mode, handler: str
) -> None:
    main_file = tmp_path / "config.toml"
    main_file.write_text(MAIN_FILES[runtime, systemd_cgroup])
    ours = tomllib.loads(node_runtime.containerd_drop_in(runtime, mode, handler, systemd_cgroup=systemd_cgroup))
    assert ours == configure(nvidia_ctk, "containerd", main_file, mode, handler)


@pytest.mark.parametrize("handler", ["nvidia", "gpu"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_crio_drop_in_is_that_of_the_toolkit(nvidia_ctk: Path, tmp_path: Path, mode: Mode, handler: str) -> None:
    main_file = tmp_path / "crio.conf"
    main_file.write_text("[crio.runtime]\n")
    assert tomllib.loads(node_runtime.crio_drop_in(handler)) == configure(nvidia_ctk, "crio", main_file, mode, handler)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_toolkits_own_configuration_is_its_default_in_another_mode(nvidia_ctk: Path, tmp_path: Path, mode: Mode) -> None:
    absent = tmp_path / "config.toml"
    argv = [nvidia_ctk, "config", f"--config-file={absent}", "--set", f"nvidia-container-runtime.mode={mode}"]
    theirs = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert tomllib.loads(node_runtime.toolkit_config(mode)) == tomllib.loads(theirs)


def test_the_toolkit_is_the_pinned_one(nvidia_ctk: Path) -> None:
    version = subprocess.run([nvidia_ctk, "--version"], capture_output=True, text=True, check=True).stdout
    pinned = re.search(r"nvidia-container-toolkit v(\S+)", (toolchain.TOOLS / "nvidia-container-toolkit" / "go.mod").read_text())
    assert pinned is not None
    assert pinned[1] in version
