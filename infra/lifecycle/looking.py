"""`make logs` and `make shell`: what pods say, and a look into one of them, by kubectl, which has no more rights than who runs it."""

import argparse
import subprocess
import sys

from components.contract import ACTIVATOR, COMPONENTS, PART_OF, PROMETHEUS, selector
from infra.engine.errors import CommandError
from infra.lifecycle.deployment import Deployment
from infra.lifecycle.target import Target
from infra.program.settings.committed import stack_config

_MOST_PODS = 50
"""Whose logs are followed at once; kubectl's own limit is 5."""
_OF = ", ".join((*COMPONENTS, ACTIVATOR, PROMETHEUS))


def logs(target: Target, options: argparse.Namespace) -> None:
    """Print what the containers of a component, a pod, or all pods have written; with `follow`, until Ctrl-C. Raises CommandError."""
    deployment = _there(target)
    command = ["logs", "--all-containers", "--prefix", f"--since={options.since}", f"--max-log-requests={_MOST_PODS}"]
    command += ["--follow"] if options.follow else []
    if options.of in ("", *COMPONENTS, ACTIVATOR, PROMETHEUS):
        wanted = selector(options.of) if options.of else {"app.kubernetes.io/part-of": PART_OF}
        # All lines of that time: with a selector kubectl prints ten of each container.
        command += ["--tail=-1", "--selector", ",".join(f"{name}={value}" for name, value in wanted.items())]
    else:
        command.append(options.of)
    _kubectl(target, deployment, command)


def shell(target: Target, options: argparse.Namespace) -> None:
    """A shell in a pod, or in the first one of a component that runs. Raises CommandError, most of all for production."""
    if not options.of:
        raise CommandError(f"OF: got nothing, want a pod, or one of {_OF}; run make shell OF=api-server")
    deployment = _there(target)
    if _is_production(deployment):
        got = f"got stack {options.stack} with governance.production"
        raise CommandError(f"STACK: {got}, want one for development; look at make logs, make explain and the dashboards")
    pod = options.of
    if pod in (*COMPONENTS, ACTIVATOR, PROMETHEUS):
        pod = _one_of(target, deployment, pod)
    container = ["--container", options.container] if options.container else []
    terminal = ["--stdin", *(["--tty"] if sys.stdin.isatty() else [])]
    _kubectl(target, deployment, ["exec", *terminal, pod, *container, "--", "sh"])


def _is_production(deployment: Deployment) -> bool:
    config = {**stack_config(deployment.stack), **deployment.cli.read_config()}
    return bool((config.get("modelfleet:governance") or {}).get("production"))


def _there(target: Target) -> Deployment:
    deployment = target.deployment()
    if deployment is None:
        raise CommandError("cluster: got none, want one that is up; run make up")
    return deployment


def _one_of(target: Target, deployment: Deployment, component: str) -> str:
    names = [f"{name}={value}" for name, value in selector(component).items()]
    listed = ["get", "pods", "--selector", ",".join(names), "--field-selector=status.phase=Running", "--output=name"]
    found = _kubectl(target, deployment, listed, read=True).split()
    if not found:
        raise CommandError(f"OF: got {component}, which has no pod that runs, want one that does; run make explain")
    return found[0]


def _kubectl(target: Target, deployment: Deployment, command: list[str], *, read: bool = False) -> str:
    """What it prints, where it is `read`; a person reads it otherwise. Raises CommandError where kubectl failed, which has said why."""
    where = ["--kubeconfig", deployment.kubeconfig, "--context", deployment.context, "--namespace", deployment.namespace]
    done = subprocess.run([target.kubectl(), *where, *command], stdout=subprocess.PIPE if read else None, text=True)
    if done.returncode:
        raise CommandError(f"kubectl {command[0]}: got exit status {done.returncode}, want 0; its message is above")
    return done.stdout or ""
