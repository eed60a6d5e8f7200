"""What a GPU node has and lacks, from what a look at its files found and what the cluster says of it. Pure, so that recorded nodes test it.

The layers are those of docs/gpu-nodes.md: driver, toolkit, container runtime, handler, CDI, device plugin or DRA driver, MIG layout.
"""

import fnmatch
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from components.node_runtime import BINARY, CONTAINERD_CONFIG, DROP_INS, TOOLKIT_CONFIG
from infra.program.settings.gpu import GpuSettings

OPERATORS_BINARY = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
"""Where the toolkit container of NVIDIA's GPU operator puts it."""
CRIO_CONFIG = "/etc/crio/crio.conf"
LOOKED_AT = (TOOLKIT_CONFIG, CONTAINERD_CONFIG, CRIO_CONFIG)
"""Files whose content a look brings along."""
LOOKED_IN = ("/etc/containerd/conf.d", "/etc/crio/crio.conf.d")
"""Directories whose TOML files a look brings along too."""
TAINT = "nvidia.com/gpu"
_CDI_KIND = "nvidia.com/gpu"
_PLUGINS = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")
"""containerd's configuration versions 3 and 2."""


class Look(BaseModel):
    """What was found on a node."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    driver: str | None
    """The first line of /proc/driver/nvidia/version."""
    devices: list[str]
    """Of /dev, `nvidia0` and so on."""
    programs: list[str]
    """Those of BINARY and OPERATORS_BINARY that are there."""
    files: dict[str, str]
    """Path to content."""
    cdi: dict[str, list[str]]
    """Kind of a CDI specification to its devices."""


Layer = Literal["driver", "toolkit", "runtime", "handler", "CDI", "devices", "MIG", "taint"]


class Line(BaseModel):
    """About one layer of one node: `error` is empty where it is as it should be."""

    model_config = ConfigDict(frozen=True)

    node: str
    layer: Layer
    says: str
    error: str = ""

    @property
    def text(self) -> str:
        return f"node {self.node}, {self.layer}: {self.error or self.says}"


def judge(node: Mapping[str, Any], look: Look | None, gpu: GpuSettings, devices: int) -> list[Line]:
    """Every layer of a node. `look`: None where no pod could look at its files. `devices`: of a DRA driver's slices of this node."""
    name = node["metadata"]["name"]
    found = [*_of_files(node, look, gpu)] if look is not None else []
    return [Line(node=name, layer=layer, says=says, error=error) for layer, says, error in [*found, *_of_cluster(node, gpu, devices)]]


_Said = tuple[Layer, str, str]


def _of_files(node: Mapping[str, Any], look: Look, gpu: GpuSettings) -> Iterator[_Said]:
    if look.driver:
        version = re.search(r"\d+\.\d+(\.\d+)?", look.driver)
        yield "driver", f"{version[0] if version else look.driver}, {len(look.devices)} GPUs", ""
    else:
        yield "driver", "", "got no /proc/driver/nvidia/version, want NVIDIA's driver loaded; install it, and look at dmesg"
    if look.programs:
        yield "toolkit", look.programs[0], ""
    else:
        yield "toolkit", "", f"got no {BINARY}, want NVIDIA's container toolkit (1.17 or newer); install it"
    if look.programs and TOOLKIT_CONFIG in look.files:
        mode = _toml(look.files[TOOLKIT_CONFIG]).get("nvidia-container-runtime", {}).get("mode")
        if mode != gpu.runtime_mode:
            yield (
                "toolkit",
                "",
                f"got mode {mode} in {TOOLKIT_CONFIG}, want {gpu.runtime_mode} (gpu.runtimeMode); write the node's files again",
            )
    yield from _of_runtime(str(node["status"]["nodeInfo"]["containerRuntimeVersion"]), look, gpu)
    if gpu.runtime_mode == "cdi":
        known = look.cdi.get(_CDI_KIND, [])
        lacking = len(look.devices) - len([each for each in known if each.isdigit()])
        if not known:
            do = "run nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml at every boot"
            yield "CDI", "", f"got no specification of {_CDI_KIND} in /etc/cdi or /var/run/cdi, want one; {do}"
        elif lacking > 0 and gpu.sharing.profile is None:
            yield "CDI", "", f"got {len(known)} devices for {len(look.devices)} GPUs, want all of them; make the specification again"
        else:
            yield "CDI", f"{len(known)} devices", ""


def _of_runtime(version: str, look: Look, gpu: GpuSettings) -> Iterator[_Said]:
    """The container runtime's main file must read the drop-in, and one of them have the handler."""
    kind, _, number = version.partition("://")
    yield "runtime", version, ""
    if kind == "containerd":
        main = _toml(look.files.get(CONTAINERD_CONFIG, ""))
        read = [text for path, text in look.files.items() if path != CONTAINERD_CONFIG and _imports(main, path)]
        tables = [_toml(text) for text in (look.files.get(CONTAINERD_CONFIG, ""), *read)]
        handlers = {each for table in tables for plugin in _PLUGINS for each in _in(table, "plugins", plugin, "containerd", "runtimes")}
        drop_in = DROP_INS["containerd"]
        if gpu.handler in handlers:
            yield "handler", f"{gpu.handler} is configured", ""
        elif drop_in in look.files and not _imports(main, drop_in):
            want = 'want imports = ["/etc/containerd/conf.d/*.toml"] in it'
            yield "handler", "", f"got {CONTAINERD_CONFIG} that does not read {drop_in}, {want}; add it and restart containerd {number}"
        else:
            yield "handler", "", f"got no runtime {gpu.handler} in {CONTAINERD_CONFIG} or {drop_in}, want it; {_FILES} --runtime containerd"
    elif kind == "cri-o":
        texts = [text for path, text in look.files.items() if path.startswith("/etc/crio/")]
        handlers = {each for text in texts for each in _in(_toml(text), "crio", "runtime", "runtimes")}
        if gpu.handler in handlers:
            yield "handler", f"{gpu.handler} is configured", ""
        else:
            yield "handler", "", f"got no runtime {gpu.handler} in {CRIO_CONFIG} or {DROP_INS['crio']}, want it; {_FILES} --runtime crio"
    else:
        yield "handler", "", f"got the container runtime {version}, want containerd or CRI-O; use one of them on GPU nodes"


_FILES = "bring its files there: python -m infra.preparation.gpu_nodes"


def _of_cluster(node: Mapping[str, Any], gpu: GpuSettings, devices: int) -> Iterator[_Said]:
    allocatable = {resource: int(count) for resource, count in node["status"].get("allocatable", {}).items() if "nvidia.com/" in resource}
    there = ", ".join(f"{count} {resource}" for resource, count in sorted(allocatable.items()) if count) or "none"
    if gpu.allocation == "dra":
        want = "want NVIDIA's DRA driver to publish them; install it, and look at its pod on this node"
        yield ("devices", f"{devices} by DRA", "") if devices else ("devices", "", f"got no device in a ResourceSlice, {want}")
    elif allocatable.get(gpu.resource):
        yield "devices", there, ""
    else:
        do = "install the device plugin, or look at its pod on this node"
        if there != "none":
            do = "name the sharing configuration to the plugin, and have it read that again (docs/gpu-nodes.md)"
        yield "devices", "", f"got {there}, want {gpu.resource}; {do}"
    if gpu.sharing.profile is not None:
        state = node["metadata"].get("labels", {}).get("nvidia.com/mig.config.state")
        if state not in (None, "success"):
            yield "MIG", "", f"got nvidia.com/mig.config.state={state}, want success; see the pod of the MIG manager on this node"
    taints: Sequence[Mapping[str, str]] = node["spec"].get("taints") or []
    if not any(taint["key"] == TAINT for taint in taints):
        yield "taint", f"no {TAINT}: pods without a GPU may take its room (docs/gpu-nodes.md)", ""


def _toml(text: str) -> Mapping[str, Any]:
    """Empty for what is none: then nothing of it counts, as with the runtime itself."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _imports(main: Mapping[str, Any], path: str) -> bool:
    return any(fnmatch.fnmatch(path, str(pattern)) for pattern in main.get("imports", []))


def _in(table: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found: Any = table
    for name in names:
        found = found.get(name, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}
