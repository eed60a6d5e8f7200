"""`python -m devcluster`: an embedded, real Kubernetes for development and tests."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from devcluster import cluster as clusters
from devcluster import network, packages, processes
from devcluster.layout import MAX_NODES, REGISTRY, RUNTIMES, Cluster, ClusterError, default_name, load
from devcluster.oci import RegistryError, repository
from devcluster.toolchain import ToolchainError


def _existing(name: str) -> Cluster:
    cluster = load(name)
    if cluster is None:
        raise ClusterError(f"--name: got {name!r}, want a cluster that is up; run python -m devcluster up --name {name}")
    return cluster


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m devcluster", description=__doc__)
    parser.add_argument("--name", default="", help="which cluster (default: the one of this checkout)")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster, or whatever of it is missing")
    up.add_argument("--nodes", type=int, default=None, help=f"1..{MAX_NODES}, default 2")
    up.add_argument("--runtime", choices=RUNTIMES, default=None, help="container runtime of its nodes, default containerd")
    up.add_argument("--yes", action="store_true", help="install missing packages without a question")
    commands.add_parser("status", help="say what runs and what does not")
    load_image = commands.add_parser("load", help="copy an image into the cluster's registry under its own name")
    load_image.add_argument(
        "image", metavar="IMAGE", help="NAME:TAG of the docker daemon, docker-archive:FILE, oci-archive:FILE or oci:DIR"
    )
    load_image.add_argument("--as", dest="target", help="name in the cluster (needed for archives)")
    commands.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    logs = commands.add_parser("logs", help="print the end of a component's log")
    logs.add_argument("component", nargs="?", help="default: the names that have one")
    logs.add_argument("--lines", type=int, default=50)
    commands.add_parser("down", help="remove the cluster and everything it made on this machine")
    return parser


def _load_image(cluster: Cluster, image: str, target: str | None) -> None:
    transport = image.partition(":")[0]
    archive = transport in ("docker-archive", "oci-archive", "oci", "dir")
    name = target or ("" if archive else image)
    if not name:
        raise ClusterError(f"--as: got nothing, want the name that {image} has in the cluster; add --as NAME:TAG")
    packages.ensure(["skopeo"], agreed=False)
    base, colon, tag = name.rpartition(":")
    reference = f"{repository(base)}:{tag}" if colon and "/" not in tag else f"{repository(name)}:latest"
    source = image if archive else f"docker-daemon:{image}"
    argv = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, f"docker://{REGISTRY}/{reference}"]
    with network.inside(cluster.fabric_netns):
        done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{image}: got {done.stderr.strip()[-400:]!r}, want an image that skopeo can read; name it as help says")


def _logs(cluster: Cluster, component: str | None, lines: int) -> None:
    known = sorted(path.stem for path in cluster.log_dir.glob("*.log"))
    if component is None:
        print("\n".join(known))
    elif component not in known:
        raise ClusterError(f"component: got {component!r}, want one of {', '.join(known)}; choose one of these")
    else:
        print(processes.tail(cluster, component, lines))


def _run(options: argparse.Namespace) -> int:
    if options.command == "up":
        recorded = load(options.name)
        count = options.nodes if options.nodes is not None else (recorded.node_count if recorded else 2)
        runtime = options.runtime or (recorded.runtime if recorded else "containerd")
        clusters.prepare(clusters.tools(runtime), agreed=options.yes)
        cluster = clusters.up(options.name, count, runtime=runtime)
        print(f"export KUBECONFIG={cluster.kubeconfig}")
        return 0
    if options.command == "down":
        if not clusters.down_named(options.name):
            clusters.say(f"devcluster: nothing of {options.name} is up")
        return 0
    cluster = _existing(options.name)
    if options.command == "status":
        rows = clusters.status(cluster)
        print("\n".join(f"{name:28} {state}" for name, state in rows))
        return 0 if rows[-1][1] == "ready" and not any("DEAD" in state for _, state in rows) else 1
    if options.command == "load":
        _load_image(cluster, options.image, options.target)
    elif options.command == "logs":
        _logs(cluster, options.component, options.lines)
    else:
        print(Path(cluster.kubeconfig))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.name = options.name or default_name()
        return _run(options)
    except (ClusterError, ToolchainError, RegistryError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        # A full disk, most of all: the next up finishes what is half made.
        print(
            f"error: {error.filename or 'disk'}: got {error.strerror or error}, want to use it; mend that",
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
