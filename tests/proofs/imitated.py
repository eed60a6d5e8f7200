"""What platforms have that the embedded cluster has not, imitated in it: the objects of `platforms/`, and what stands behind them."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from devcluster import addons, processes, system_images
from devcluster import cluster as embedded
from devcluster.layout import Cluster
from tests.cluster.kube import Kube, eventually, of_others

RANCHER = "rancher.io/local-path"
_DIRECTORY = Path(__file__).with_name("platforms")
_GPU_NODE = {"nvidia.com/gpu.present": "true", "nvidia.com/gpu.product": "NVIDIA-L40S"}
"""Labels that GPU feature discovery gives a node."""


def objects(platform: str) -> list[dict[str, Any]]:
    """What is there before the stack, and is not the stack's."""
    return list(yaml.safe_load_all((_DIRECTORY / f"{platform}.yaml").read_text()))


@contextmanager
def kind(cluster: Cluster, kube: Kube) -> Iterator[None]:
    """None of our provisioners runs, but Rancher's under its own name, as in kind."""
    ours = addons.provisioner_processes(cluster, embedded.binaries(), system_images.helper().reference)
    argv = [part.replace(addons.PROVISIONERS["hot"], RANCHER) for part in ours[0].argv]
    theirs = replace(ours[0], name="provisioner-rancher", argv=argv)
    for each in ours:
        processes.stop(cluster, each.name)
    processes.ensure(cluster, theirs)
    try:
        with of_others(kube, *objects("kind")):
            yield
    finally:
        processes.stop(cluster, theirs.name)
        for each in ours:
            processes.ensure(cluster, each)


@contextmanager
def on_premises(cluster: Cluster, kube: Kube) -> Iterator[None]:
    """The GPU operator's RuntimeClass and labels; MetalLB gives the Service an address, here the node's."""
    address = {"status": {"loadBalancer": {"ingress": [{"ip": cluster.control_plane.address}]}}}
    patch = [kube.kubectl, f"--kubeconfig={kube.kubeconfig}", "patch", "service", "api-server", "--namespace=modelfleet"]
    patch += ["--subresource=status", "--type=merge", f"--patch={json.dumps(address)}"]
    # The Service comes halfway through the deployment, which then waits for its address.
    until_done = ["sh", "-c", 'until "$@" >/dev/null 2>&1; do sleep 1; done', "sh", *patch]
    with _gpu_nodes(kube), of_others(kube, *objects("on-premises")), subprocess.Popen(until_done) as metallb:
        try:
            yield
        finally:
            metallb.terminate()


@contextmanager
def openshift(_: Cluster, kube: Kube) -> Iterator[None]:
    """Its users of pods, its DNS in another place, its classes, and a pod where Routes lead through."""
    kube.run("delete", "service", "kube-dns", "--namespace=kube-system")
    try:
        with _gpu_nodes(kube), of_others(kube, *objects("openshift")):
            kube.run("wait", "--for=condition=Ready", "pod/router", "--namespace=openshift-ingress", "--timeout=100s")
            kube.run("rollout", "status", "deployment/dns-default", "--namespace=openshift-dns", "--timeout=100s")
            new = ("create", "namespace", "new", "--dry-run=server", "-o", "json")
            eventually(lambda: json.loads(kube.run(*new))["metadata"].get("annotations"), bool, 60, "users for a new namespace")
            yield
    finally:
        kube.run("create", "-f", "-", stdin=json.dumps(addons.manifests("")[-1]))


@contextmanager
def _gpu_nodes(kube: Kube) -> Iterator[None]:
    kube.run("label", "nodes", "--all", *(f"{key}={value}" for key, value in _GPU_NODE.items()))
    try:
        yield
    finally:
        kube.run("label", "nodes", "--all", *(f"{key}-" for key in _GPU_NODE))
