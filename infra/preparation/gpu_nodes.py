"""What to put on a GPU node, from a stack's settings.

    python -m infra.preparation.gpu_nodes --stack prod --runtime containerd --into DIRECTORY

Writes the files below DIRECTORY at their paths on the node, for a machine image, Ansible, a MachineConfig: whatever the platform
brings files to nodes with. docs/gpu-nodes.md has the rest.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from components import node_runtime
from infra.program.settings import refusals
from infra.program.settings.committed import stack_config
from infra.program.settings.gpu import GpuSettings
from infra.program.settings.section import Section, SettingsError


class _GpuAlone(Section):
    """Nodes are made before there is a cluster, images or keys: only this section is read."""

    gpu: GpuSettings


def gpu_settings(stack: str) -> GpuSettings:
    """The section `gpu` of a committed stack. Raises SettingsError when it is wrong, there is no such stack, or no node has a GPU."""
    section = {"gpu": stack_config(stack).get("modelfleet:gpu", {})}
    try:
        settings = _GpuAlone.model_validate(section).gpu
    except ValidationError as error:
        raise SettingsError("\n".join(refusals.lines(error, section, _GpuAlone, ()))) from None
    if not settings.enabled:
        raise SettingsError("modelfleet:gpu.enabled: got false, want true for GPU nodes; choose a stack with GPUs")
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.preparation.gpu_nodes", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stack", default="prod")
    parser.add_argument("--runtime", required=True, choices=get_args(node_runtime.Runtime), help="the one container runtime of the nodes")
    parser.add_argument("--cgroup-driver", default="systemd", choices=["systemd", "cgroupfs"], help="as in the kubelet's configuration")
    parser.add_argument("--into", required=True, type=Path)
    options = parser.parse_args(arguments)
    try:
        gpu = gpu_settings(options.stack)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    systemd = options.cgroup_driver == "systemd"
    for path, text in node_runtime.node_files(options.runtime, gpu.runtime_mode, gpu.handler, systemd_cgroup=systemd).items():
        target = options.into / path.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
