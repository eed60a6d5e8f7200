"""A look at each GPU node of a cluster, by a Job that reads files of the node and changes none."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from components.node_runtime import BINARY
from infra.analysis.gpu_nodes import LOOKED_AT, LOOKED_IN, OPERATORS_BINARY, Line, Look, judge
from infra.lifecycle.trial import JOB_S, Cluster, Trial
from infra.program.settings.gpu import GpuSettings

_HOST = "/node"
_MOST_NODES = 50
"""Jobs at once; a pool of equal nodes needs no look at each."""
_LOOKS = f"""
import glob, json, os
host = {_HOST!r}
def text(path):
    try:
        with open(path, errors="replace") as file:
            return file.read(65536)
    except OSError:
        return None
names = [*{LOOKED_AT!r}, *(name.removeprefix(host) for folder in {LOOKED_IN!r} for name in sorted(glob.glob(host + folder + "/*")))]
cdi = {{}}
for path in sorted(glob.glob(host + "/etc/cdi/*") + glob.glob(host + "/var/run/cdi/*") + glob.glob(host + "/run/cdi/*")):
    kind, devices = "", []
    for line in (text(path) or "").splitlines():
        word, _, value = line.strip().removeprefix("- ").partition(":")
        value = value.strip().strip('",')
        if word.strip('"') == "kind":
            kind = value
        elif word.strip('"') == "name":
            devices.append(value)
    if kind:
        cdi[kind] = sorted({{*cdi.get(kind, []), *devices}})
print(json.dumps({{
    "driver": (text("/proc/driver/nvidia/version") or "").partition("\\n")[0] or None,
    "devices": sorted(os.path.basename(path) for path in glob.glob(host + "/dev/nvidia[0-9]*")),
    "programs": [path for path in {(BINARY, OPERATORS_BINARY)!r} if os.path.exists(host + path)],
    "files": {{name: found for name in names if (found := text(host + name)) is not None}},
    "cdi": cdi,
}}))
"""
"""Reads TOML as text, since a pod's Python may be older than the module for it; a CDI specification is JSON or YAML, one word a line."""


def check(cluster: Cluster, trial: Trial, gpu: GpuSettings) -> Iterator[Line]:
    """Every layer of every GPU node. Nodes where no pod may read files are judged by what the cluster says of them alone."""
    nodes = [node for node in cluster.items("v1", "Node") if gpu.nodes.items() <= (node["metadata"].get("labels") or {}).items()]
    slices = _slices(cluster) if gpu.allocation == "dra" else {}
    looked = nodes[:_MOST_NODES]
    for number, node in enumerate(looked):
        trial.start(f"node{number}", [_LOOKS], node=node["metadata"]["name"], host=_HOST)
    for number, node in enumerate(looked):
        name = node["metadata"]["name"]
        said = trial.said(f"node{number}") if trial.ends_well(f"node{number}", JOB_S) else ""
        look = _look(said or "")
        if look is None:
            why = "the pod that read them is gone, with what it said" if said is None else trial.why(f"node{number}")
            yield Line(node=name, layer="runtime", says=f"its files were not read: {why}")
        yield from judge(node, look, gpu, slices.get(name, 0))


def _look(said: str) -> Look | None:
    try:
        return Look.model_validate(json.loads(said))
    except (ValueError, ValidationError):
        return None


def _slices(cluster: Cluster) -> Mapping[str, int]:
    """Node to devices of NVIDIA's DRA driver."""
    found: dict[str, int] = {}
    for each in cluster.items("resource.k8s.io/v1", "ResourceSlice"):
        spec: Mapping[str, Any] = each["spec"]
        if spec["driver"] == "gpu.nvidia.com" and spec.get("nodeName"):
            found[spec["nodeName"]] = found.get(spec["nodeName"], 0) + len(spec.get("devices") or [])
    return found
