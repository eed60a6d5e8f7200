"""What a GPU node needs beside its driver, as pure functions from choices to files.

The texts say what `nvidia-ctk runtime configure` and `nvidia-ctk config` of NVIDIA's container toolkit would write; a test compares
them with the real tool. A node runs one container runtime, so it gets one drop-in (docs/gpu-nodes.md).
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import yaml

Runtime = Literal["containerd", "containerd-1", "crio"]
"""containerd 2 (configuration version 3), containerd 1.7 (version 2), or CRI-O."""
Mode = Literal["cdi", "auto", "legacy"]
BINARY = "/usr/bin/nvidia-container-runtime"
CONTAINERD_CONFIG = "/etc/containerd/config.toml"
TOOLKIT_CONFIG = "/etc/nvidia-container-runtime/config.toml"
DROP_INS: Mapping[Runtime, str] = {
    "containerd": "/etc/containerd/conf.d/99-nvidia.toml",
    "containerd-1": "/etc/containerd/conf.d/99-nvidia.toml",
    "crio": "/etc/crio/crio.conf.d/99-nvidia.toml",
}
"""Where each runtime's drop-in lies: nvidia-ctk's own defaults."""
_CRI_PLUGINS = {"containerd": (3, "io.containerd.cri.v1.runtime"), "containerd-1": (2, "io.containerd.grpc.v1.cri")}


def node_files(runtime: Runtime, mode: Mode, handler: str = "nvidia", *, systemd_cgroup: bool = True) -> dict[str, str]:
    """Absolute path on the node to content. `systemd_cgroup`: the kubelet's cgroup driver is systemd; containerd must follow it."""
    drop_in = crio_drop_in(handler) if runtime == "crio" else containerd_drop_in(runtime, mode, handler, systemd_cgroup=systemd_cgroup)
    return {DROP_INS[runtime]: drop_in, TOOLKIT_CONFIG: toolkit_config(mode)}


def containerd_drop_in(runtime: Runtime, mode: Mode, handler: str = "nvidia", *, systemd_cgroup: bool = True) -> str:
    """The runtime `handler` for containerd. The main file must import it: `imports = ["/etc/containerd/conf.d/*.toml"]`."""
    version, plugin = _CRI_PLUGINS[runtime]
    kind = {"runtime_type": "io.containerd.runc.v2"}
    if systemd_cgroup:
        # An imported table takes the place of the main file's, so runc is said again.
        runtimes: dict[str, Any] = {
            handler: {**kind, "options": {"BinaryName": BINARY, "SystemdCgroup": True}},
            "runc": {**kind, "options": {"SystemdCgroup": True}},
        }
    else:
        defaults = {"privileged_without_host_devices": False, "runtime_engine": "", "runtime_root": ""}
        runtimes = {handler: {**kind, **defaults, "options": {"BinaryName": BINARY}}}
    section: dict[str, Any] = {"containerd": {"runtimes": runtimes}}
    if mode == "cdi":
        section["enable_cdi"] = True
    return toml({"version": version, "plugins": {plugin: section}})


def crio_drop_in(handler: str = "nvidia") -> str:
    """The runtime `handler` for CRI-O, whose CDI support needs no switch."""
    return toml({"crio": {"runtime": {"runtimes": {handler: {"runtime_path": BINARY, "runtime_type": "oci"}}}}})


def toolkit_config(mode: Mode) -> str:
    """NVIDIA's runtime itself. Source of every value but `mode`: `nvidia-ctk config default` of version 1.20.1."""
    return toml(
        {
            "disable-require": False,
            "supported-driver-capabilities": "compat32,compute,display,graphics,ngx,utility,video",
            "nvidia-container-cli": {"environment": [], "ldconfig": "@/sbin/ldconfig", "load-kmods": True},
            "nvidia-container-runtime": {
                "log-level": "info",
                "mode": mode,
                "runtimes": ["runc", "crun"],
                "modes": {
                    "cdi": {
                        "annotation-prefixes": ["cdi.k8s.io/"],
                        "default-kind": "nvidia.com/gpu",
                        "spec-dirs": ["/etc/cdi", "/var/run/cdi"],
                    },
                    "csv": {"mount-spec-path": "/etc/nvidia-container-runtime/host-files-for-container.d"},
                    "legacy": {"cuda-compat-mode": "ldconfig"},
                },
            },
            "nvidia-container-runtime-hook": {"path": "nvidia-container-runtime-hook", "skip-mode-detection": False},
            "nvidia-ctk": {"path": "nvidia-ctk"},
        }
    )


def device_plugin_config(strategy: Literal["time-slicing", "mps", "mig"], replicas: int | None = None) -> str:
    """The configuration file of NVIDIA's device plugin for one sharing strategy (its README, "version: v1").

    Shares get a name of their own, `nvidia.com/gpu.shared`, so that no pod takes one for a whole GPU, and a pod that asks for two is
    refused: two shares are not twice the compute, and may be of the same GPU. MIG partitions are named by their profile (strategy `mixed`).
    """
    config: dict[str, Any] = {"version": "v1", "flags": {"migStrategy": "mixed" if strategy == "mig" else "none"}}
    if strategy != "mig":
        shares = [{"name": "nvidia.com/gpu", "replicas": replicas}]
        rules = {"renameByDefault": True, "failRequestsGreaterThanOne": True, "resources": shares}
        config["sharing"] = {"timeSlicing" if strategy == "time-slicing" else "mps": rules}
    return yaml.safe_dump(config, sort_keys=False)


def toml(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """TOML of nested tables of booleans, integers, strings and lists of strings. JSON's form of those values is TOML's too."""
    values = [f"{_key(name)} = {json.dumps(value)}\n" for name, value in table.items() if not isinstance(value, Mapping)]
    header = f"[{'.'.join(_key(part) for part in path)}]\n" if path and values else ""
    tables = [toml(value, (*path, name)) for name, value in table.items() if isinstance(value, Mapping)]
    return "\n".join(part for part in (header + "".join(values), *tables) if part)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
