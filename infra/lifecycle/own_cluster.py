"""A stack on a cluster of the user's own, behind a context of the kubeconfig. Nothing of the embedded cluster is needed for it."""

import argparse
import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from components.contract import PORTS, PROMETHEUS
from infra.engine.errors import CommandError
from infra.engine.shared import backend
from infra.lifecycle import cluster_check, removal
from infra.lifecycle.bring_up import bring_up, say
from infra.lifecycle.deployment import Deployment
from infra.lifecycle.forwarding import forwarded
from infra.program.settings.committed import stack_config
from modelfleet_outputs import FleetOutputs


@dataclass(frozen=True)
class OwnCluster:
    """Where `make up CONTEXT=…` deploys a stack."""

    stack: str
    context: str

    def deployment(self) -> Deployment:
        return on_context(self.context, self.stack)

    def up(self, options: argparse.Namespace) -> None:
        """Deploy the stack. Raises what went wrong."""
        deployment = self.deployment()
        where = backend() or f"{deployment.state_dir}; PULUMI_BACKEND_URL names another place"
        say(f"up: the state of stack {self.stack} is in {where}")
        if not deployment.cli.has_stack():
            self._try_first(deployment, options)
        bring_up(deployment, {}, options, lambda outputs: port_forward(deployment, outputs), forwarded=True)

    def check(self, options: argparse.Namespace) -> None:
        """Try what the cluster does, before the stack is there. Raises what went wrong."""
        answers = cluster_check.check(self.context, self.deployment().kubeconfig, self._asked(self.deployment(), options))
        for answer in answers:
            if answer.says:
                say(f"check: {answer.says}")
        if errors := [answer.error for answer in answers if answer.error]:
            raise CommandError("\n".join(errors))

    def _try_first(self, deployment: Deployment, options: argparse.Namespace) -> None:
        if not options.image and not cluster_check.image_of(stack_config(self.stack)):
            say("up: policies and classes of the cluster are not tried, for there is no image yet; make check IMAGE=… does it")
            return
        say("up: the stack is not there yet, so the cluster is tried first")
        self.check(options)

    def _asked(self, deployment: Deployment, options: argparse.Namespace) -> cluster_check.Asked:
        logins = Path(options.registry_auth).read_text() if options.registry_auth else None
        if logins is None and not deployment.shared and "modelfleet:registryAuth" in deployment.cli.read_config():
            logins = deployment.cli.run("config", "get", "modelfleet:registryAuth")
        return cluster_check.asked_of({**stack_config(self.stack), **deployment.cli.read_config()}, options.image, logins)

    def down(self, options: argparse.Namespace) -> None:
        """Remove what the stack made, after a question. Raises what went wrong."""
        if options.forget:
            removal.forget(self.deployment(), agreed=options.yes)
        else:
            removal.down(self.deployment(), agreed=options.yes)

    def kubectl(self) -> str:
        """The program that reaches the cluster. Raises CommandError."""
        return _kubectl()

    def prometheus(self, deployment: Deployment) -> AbstractContextManager[str]:
        """The address of the stack's own Prometheus. Raises CommandError."""
        return forwarded(_kubectl(), deployment, deployment.namespace, PROMETHEUS, PORTS[PROMETHEUS])

    def status(self) -> int:
        """Print the stack's outputs. Returns the exit status."""
        print(self.deployment().outputs().model_dump_json(indent=1))
        return 0


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise CommandError("PATH: got no kubectl, want it to reach a cluster of your own; install it")
    return found


def port_forward(deployment: Deployment, outputs: FleetOutputs) -> AbstractContextManager[str]:
    """A loopback port to the API server through the cluster's own API. Raises CommandError."""
    return forwarded(_kubectl(), deployment, outputs.namespace, outputs.service, outputs.port, outputs.scheme)


def state_directory(context: str, stack: str) -> Path:
    """Where a stack behind a context keeps its state, unless PULUMI_BACKEND_URL names another place."""
    root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "modelfleet" / "contexts"
    return root / context.replace("/", "_") / stack


def on_context(context: str, stack: str) -> Deployment:
    """The deployment behind a context of the kubeconfig. Its state is where PULUMI_BACKEND_URL says, or in the user's state directory."""
    kubeconfig = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    builder = stack_config(stack).get("modelfleet:images", {}).get("builder", "prebuilt")
    directory = state_directory(context, stack)
    return Deployment(
        stack=stack, context=context, kubeconfig=kubeconfig, state_dir=directory, builder=builder, shared=bool(backend())
    )  # fmt: skip
