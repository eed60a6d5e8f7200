"""A stack on the embedded cluster, which is made on this machine and goes with everything in it."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.contract import PORTS, PROMETHEUS
from devcluster import archive, host, toolchain
from devcluster import cluster as embedded
from devcluster.layout import RUNTIMES, Cluster, ClusterError, Runtime, default_name, load
from devcluster.oci import Image, RegistryError
from devcluster.toolchain import ToolchainError
from images import embedded as images
from infra import ROOT
from infra.engine.binaries import needs_own_tools
from infra.engine.errors import CommandError
from infra.engine.own_tools import TOOLS
from infra.lifecycle.bring_up import bring_up, say
from infra.lifecycle.deployment import Deployment
from infra.lifecycle.forwarding import forwarded
from modelfleet_outputs import FleetOutputs


@contextmanager
def _errors_of_a_command() -> Iterator[None]:
    """Turn the errors of the embedded cluster into those of a command, which every caller knows."""
    try:
        yield
    except (ClusterError, ToolchainError, RegistryError, images.ImageError) as error:
        raise CommandError(str(error)) from None


@dataclass(frozen=True)
class EmbeddedCluster:
    """Where `make up` without a context deploys a stack."""

    stack: str

    @_errors_of_a_command()
    def deployment(self) -> Deployment | None:
        """None while there is no embedded cluster."""
        cluster = load(default_name())
        return on_embedded(cluster, self.stack) if cluster is not None else None

    @_errors_of_a_command()
    def up(self, options: argparse.Namespace) -> None:
        """Make the cluster, and deploy the stack. Raises what went wrong."""
        runtime = RUNTIMES[RUNTIMES.index(options.runtime)] if options.runtime in RUNTIMES else None
        if options.runtime and runtime is None:
            raise CommandError(f"RUNTIME: got {options.runtime}, want one of {', '.join(RUNTIMES)}; choose one of these")
        if options.tools:
            host.check()
            archive.take(options.tools)
        cluster, built = start_embedded(default_name(), options.nodes, agreed=options.yes, runtime=runtime)
        bring_up(
            on_embedded(cluster, self.stack),
            image_overrides(built),
            options,
            lambda outputs: nullcontext(_endpoint(cluster, outputs)),
            forwarded=False,
        )

    @_errors_of_a_command()
    def down(self, options: argparse.Namespace) -> None:
        """Remove the cluster. Raises what went wrong."""
        if options.forget:
            raise CommandError("FORGET: got it for the embedded cluster, want a CONTEXT whose cluster is gone; add CONTEXT=name")
        if os.geteuid() != 0:
            raise CommandError("user: got no root, want the user that ran make up; run with sudo")
        # The cluster goes with everything in it, so there is nothing to destroy one by one.
        if embedded.down_named(default_name()):
            say("down: the embedded cluster and all that it made are gone")
            return
        say("down: nothing is up")
        _say_of_others("down")

    @_errors_of_a_command()
    def prometheus(self, deployment: Deployment) -> AbstractContextManager[str]:
        """The address of the stack's own Prometheus. Raises CommandError."""
        return forwarded(self.kubectl(), deployment, deployment.namespace, PROMETHEUS, PORTS[PROMETHEUS])

    @_errors_of_a_command()
    def kubectl(self) -> str:
        """The program that reaches the cluster. Raises CommandError."""
        return str(embedded.binaries() / "kubectl")

    @_errors_of_a_command()
    def status(self) -> int:
        """Print what runs, and where the stack is reached. Returns the exit status."""
        cluster = load(default_name())
        if cluster is None:
            print("down; run make up")
            _say_of_others("status")
            return 1
        rows = embedded.status(cluster)
        for name, state in rows:
            print(f"{name:28} {state}")
        outputs = on_embedded(cluster, self.stack).outputs()
        print(f"{'endpoint':28} {_endpoint(cluster, outputs)}{outputs.base_path}")
        return 0 if rows[-1][1] == "ready" else 1


def _say_of_others(command: str) -> None:
    for other in embedded.of_others():
        state, name = Path(other).parents[2], Path(other).name
        remove = f"sudo env PYTHONPATH={ROOT} XDG_STATE_HOME={state} {sys.executable} -m devcluster --name {name} down"
        say(f"{command}: there is a cluster in {other}, of another user or HOME, or without its record; it goes with: {remove}")


def on_embedded(cluster: Cluster, stack: str) -> Deployment:
    directory, address = cluster.state_dir / "pulumi" / stack, cluster.control_plane.address
    return Deployment(stack=stack, context=cluster.context, kubeconfig=str(cluster.kubeconfig), state_dir=directory, address=address)


def _endpoint(cluster: Cluster, outputs: FleetOutputs) -> str:
    return f"{outputs.scheme}://{cluster.control_plane.address}:{outputs.node_port}"


def image_overrides(built: Mapping[str, Image]) -> dict[str, Any]:
    return {"images": {"builder": "prebuilt", "refs": {name: image.reference for name, image in built.items()}}}


def start_embedded(
    name: str, nodes: int, ggufs: Mapping[str, Path] | None = None, *, agreed: bool = False, runtime: Runtime | None = None
) -> tuple[Cluster, dict[str, Image]]:
    """A ready cluster with every image of the stack in its registry. `agreed`: missing packages are installed without a question.

    `runtime`: the container runtime of its nodes; without one that of the cluster that is there, or containerd.
    The base of the images is fetched while the tools compile, and the images are built while the cluster starts.
    """
    # All tools in one call: two are built at a time until the end, and the estimate is of the whole.
    own = needs_own_tools()
    recorded = load(name)
    runtime = runtime or (recorded.runtime if recorded else "containerd")
    tools = [tool.name for tool in toolchain.TOOLCHAIN if not tool.on_demand and (own or tool.name not in TOOLS)]
    tools += [name for name in embedded.tools(runtime) if name not in tools]
    embedded.prepare(tools, agreed=agreed)
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(images.fetch, ggufs)
        toolchain.ensure(tools)
        fetching.result()
        building = pool.submit(images.build, ggufs)
        cluster = embedded.up(name, nodes, runtime=runtime)
        built = building.result()
    embedded.push(cluster, list(built.values()))
    return cluster, built
