"""`make logs`, `shell`, `debug` and `scan`: what pods say, a look into one, and at their images. kubectl has the rights of who runs it."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from components.contract import ACTIVATOR, COMPONENTS, PART_OF, PROMETHEUS, SCAN_FILE, SCAN_RESULT, selector
from infra import ROOT
from infra.engine.errors import CommandError
from infra.lifecycle.bring_up import say
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
    deployment, pod = _pod(target, options)
    container = ["--container", options.container] if options.container else []
    _kubectl(target, deployment, ["exec", *_terminal(), pod, *container, "--", "sh"])


def debug(target: Target, options: argparse.Namespace) -> None:
    """A shell in a further container of a pod, which sees the processes of the named one and stops none. Raises as `shell` does.

    Without another image it has that of the container, which every policy of the namespace lets in. It is there until the pod goes.
    """
    deployment, pod = _pod(target, options)
    each = '{range .spec.%s[*]}{.name} {.image}{"\\n"}{end}'
    wanted = "".join(each % kind for kind in ("containers", "initContainers"))
    listed = ["get", pod if "/" in pod else f"pod/{pod}", f"--output=jsonpath={wanted}"]
    images = dict(line.split(" ", 1) for line in _kubectl(target, deployment, listed, read=True).splitlines())
    container = options.container or next(iter(images))
    if container not in images:
        raise CommandError(f"CONTAINER: got {container}, want one of {', '.join(images)}; choose one of these")
    given = ["--image", options.image or images[container], "--target", container, "--profile=restricted"]
    _kubectl(target, deployment, ["debug", *_terminal(), pod, *given, "--", "sh"])


def scan(target: Target, options: argparse.Namespace) -> None:
    """Look for vulnerabilities in what runs, whatever was known of it when it was signed. Raises CommandError where some are grave.

    The sums are kept in the namespace, where the exporter of metrics reads them.
    """
    if not options.context:
        raise CommandError("scan: got no CONTEXT, want a cluster whose registry this machine reaches; run make scan CONTEXT=name")
    each = '{range .items[*].spec.%s[*]}{.image}{"\\n"}{end}'
    wanted = "".join(each % kind for kind in ("containers", "initContainers"))
    deployment = _there(target)
    images = sorted(set(_kubectl(target, deployment, ["get", "pods", f"--output=jsonpath={wanted}"], read=True).split()))
    if not images:
        raise CommandError("scan: got no pod, want a stack that is up; run make up CONTEXT=name")
    with tempfile.TemporaryDirectory(prefix="modelfleet-scan-") as work:
        summary = Path(work) / "summary.json"
        argv = [sys.executable, "-m", "images.supply_chain", "--summary", str(summary), *images]
        failed = subprocess.run(argv, cwd=ROOT).returncode
        if summary.exists():
            keep(target, deployment, {"finished": round(time.time()), **json.loads(summary.read_text())})
    if failed:
        raise CommandError("scan: got the lines above, want images without them; rebuild, sign and deploy as docs/images.md says")


def keep(target: Target, deployment: Deployment, result: dict[str, Any]) -> None:
    """Leave what a scan has found where its metrics are made of it. An account that may not do so is told, and has scanned all the same."""
    metadata = {"name": SCAN_RESULT, "labels": {"app.kubernetes.io/part-of": PART_OF}}
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {SCAN_FILE: json.dumps(result)}}
    try:
        given = ["apply", "--server-side", "--field-manager=modelfleet-scan", "--force-conflicts", "--filename=-"]
        _kubectl(target, deployment, given, stdin=json.dumps(item), read=True)
    except CommandError:
        say(f"scan: ConfigMap/{SCAN_RESULT} could not be written, so no metric and no alert knows of this scan; docs/images.md says why")


def _terminal() -> list[str]:
    return ["--stdin", *(["--tty"] if sys.stdin.isatty() else [])]


def _pod(target: Target, options: argparse.Namespace) -> tuple[Deployment, str]:
    """Which one is looked into. Raises CommandError, most of all for production."""
    if not options.of:
        raise CommandError(f"OF: got nothing, want a pod, or one of {_OF}; run make {options.command} OF=api-server")
    deployment = _there(target)
    if _is_production(deployment):
        got = f"got stack {options.stack} with governance.production"
        raise CommandError(f"STACK: {got}, want one for development; look at make logs, make explain and the dashboards")
    if options.of in (*COMPONENTS, ACTIVATOR, PROMETHEUS):
        return deployment, _one_of(target, deployment, options.of)
    return deployment, options.of


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


def _kubectl(target: Target, deployment: Deployment, command: list[str], *, read: bool = False, stdin: str | None = None) -> str:
    """What it prints, where it is `read`; a person reads it otherwise. Raises CommandError where kubectl failed, which has said why."""
    where = ["--kubeconfig", deployment.kubeconfig, "--context", deployment.context, "--namespace", deployment.namespace]
    done = subprocess.run([target.kubectl(), *where, *command], stdout=subprocess.PIPE if read else None, input=stdin, text=True)
    if done.returncode:
        raise CommandError(f"kubectl {command[0]}: got exit status {done.returncode}, want 0; its message is above")
    return done.stdout or ""
