"""`make backup` and `make restore`: what cannot be made again, encrypted by restic, into a repository of the user's.

docs/backup.md has the table of what that is. Models are not: they come again, by digest, and the catalog says by which.
"""

import argparse
import fcntl
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.contract import OLLAMA
from components.models import STORE_PATH
from infra.engine.errors import CliError, CommandError
from infra.lifecycle import usage
from infra.lifecycle.bring_up import say
from infra.lifecycle.deployment import Deployment
from infra.lifecycle.target import Target
from infra.program.cluster import identity as cluster_identity

ABOUT, CATALOG, USAGE, STATE = "about.json", "catalog.json", "usage.csv", "stack.json"
_NOTES = "backup"
"""Directory beside the state with what is read from the cluster."""
_LOCK = "lock"
_DAYS = "40"
"""Of usage: as long as the stack's own Prometheus keeps samples by default."""
_PASSWORDS = ("RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND", "RESTIC_PASSWORD")
_NO_REPOSITORY = "Is there a repository at the following location"
"""What restic says of one; for a wrong password it says something else."""


@dataclass(frozen=True)
class Repository:
    """A place that restic keeps snapshots in: a directory, S3, SFTP, and what else restic knows."""

    place: str

    def run(self, *arguments: str, cwd: Path | None = None) -> str:
        """Standard output of restic. Raises CommandError with what it said."""
        # Without a terminal it fails where it would ask for a password.
        environment = {**os.environ, "RESTIC_REPOSITORY": self.place}
        done = subprocess.run(
            ["restic", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )  # fmt: skip
        if done.returncode:
            said = " ".join(done.stderr.split())[-500:]
            raise CommandError(f"restic {arguments[0]}: got {said!r} from {self.place}, want success; mend what it names")
        return done.stdout

    def ensure(self) -> None:
        """Make it unless it is there. Raises CommandError."""
        try:
            self.run("cat", "config")
        except CommandError as error:
            if _NO_REPOSITORY not in str(error):
                raise
            self.run("init")
            say(f"backup: {self.place} is a new repository; without its password nobody can read it, nor you")


def repository(variable: str, typed: str) -> Repository:
    """The one that is typed, or that restic's own variable names. Raises CommandError for what restic lacks."""
    place = typed or os.environ.get("RESTIC_REPOSITORY", "")
    if not place:
        raise CommandError(f"{variable}: got nothing, want a restic repository, such as /mnt/backup or s3:https://host/bucket; name it")
    if shutil.which("restic") is None:
        raise CommandError("PATH: got no restic, want it to encrypt and keep backups; run apt-get install restic")
    if not any(os.environ.get(name) for name in _PASSWORDS):
        raise CommandError(f"{_PASSWORDS[0]}: got nothing, want a file with the repository's password; make one, and keep a copy elsewhere")
    return Repository(place)


def backup(target: Target, options: argparse.Namespace) -> None:
    """Keep the stack's state, configuration, secrets, catalog and usage. Raises what went wrong."""
    kept = repository("TO", options.to)
    deployment = target.deployment()
    if deployment is None or not deployment.cli.has_stack():
        raise CommandError(f"backup: got no stack {options.stack}, want one; run make up")
    kept.ensure()
    with _nobody_else(deployment):
        notes = deployment.state_dir / _NOTES
        shutil.rmtree(notes, ignore_errors=True)
        notes.mkdir(mode=0o700)
        _note(target, deployment, options, notes)
        tags = ["--tag", f"modelfleet,stack={deployment.stack}"]
        # All of it is read, which is little: restic need not trust what it wrote the last time.
        said = kept.run(
            "backup", "--json", "--force", *tags, "--host", deployment.context, "--exclude", _LOCK, ".", cwd=deployment.state_dir
        )
    kept.run("check", "--read-data")
    summary = json.loads(said.splitlines()[-1])
    say(f"backup: {kept.place} has snapshot {summary['snapshot_id'][:8]} of stack {deployment.stack}; it was read again and is whole")


def _note(target: Target, deployment: Deployment, options: argparse.Namespace, notes: Path) -> None:
    """What is not in the state: what each model is, and what each key has used. What cannot be read is said, and left out."""
    about = {
        "stack": deployment.stack,
        "context": deployment.context,
        "namespace": deployment.namespace,
        "identity": _identity(deployment),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "shared": deployment.shared,
    }
    (notes / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    if deployment.shared:
        (notes / STATE).write_text(deployment.cli.run("stack", "export"))
    try:
        (notes / CATALOG).write_text(_catalog(target, deployment))
    except CommandError as error:
        say(f"backup: without the catalog: {error}")
    try:
        with redirect_stdout(io.StringIO()):
            usage.show(target, argparse.Namespace(**{**vars(options), "days": _DAYS, "csv": str(notes / USAGE)}))
    except CommandError as error:
        say(f"backup: without usage: {error}")


def _identity(deployment: Deployment) -> str:
    return str((deployment.cli.read_config().get("modelfleet:cluster") or {}).get("identity", ""))


def _catalog(target: Target, deployment: Deployment) -> str:
    """As a replica has it. Raises CommandError."""
    where = ["--kubeconfig", deployment.kubeconfig, "--context", deployment.context, "--namespace", deployment.namespace]
    command = ["exec", f"statefulset/{OLLAMA}", "--container", "ollama-agent", "--", "cat", f"{STORE_PATH}/{CATALOG}"]
    done = subprocess.run([target.kubectl(), *where, *command], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise CommandError(f"kubectl exec: got {' '.join(done.stderr.split())[-300:]!r}, want a replica that runs")
    return done.stdout


def restore(target: Target, options: argparse.Namespace) -> None:
    """Put a stack's state, configuration and secrets back, where there is none. `make up` then makes the rest. Raises what went wrong."""
    kept = repository("FROM", options.source)
    deployment = target.deployment()
    if deployment is None:
        raise CommandError("cluster: got none, want one that is up; start it first")
    if deployment.shared:
        want = "want it to be restored there; take backup/stack.json of the snapshot by restic restore, and run pulumi stack import"
        raise CommandError(f"restore: got a stack whose state PULUMI_BACKEND_URL keeps, {want}")
    if deployment.cli.has_stack():
        want = f"want none, which would be lost; move {deployment.state_dir} aside"
        raise CommandError(f"restore: got stack {deployment.stack} on {deployment.context}, {want}")
    found = cluster_identity(deployment.context, deployment.kubeconfig)
    fresh = deployment.state_dir.with_name(f".{deployment.state_dir.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    try:
        kept.run("restore", options.snapshot, "--tag", f"modelfleet,stack={deployment.stack}", "--target", str(fresh))
        about = _about(fresh, deployment)
        # A lock or a log may be there already, and nothing else: there is no stack.
        shutil.rmtree(deployment.state_dir, ignore_errors=True)
        fresh.replace(deployment.state_dir)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    say(f"restore: stack {deployment.stack} is as it was at {about['made']}")
    if found != about["identity"]:
        _move(deployment, found)
    for model in _models(deployment.state_dir / _NOTES / CATALOG):
        say(f"restore: {model}")
    say("restore: now run make up, which makes again what the cluster lacks, and fetches the models")


def _about(directory: Path, deployment: Deployment) -> Mapping[str, Any]:
    """What a snapshot says of itself. Raises CommandError unless it is one of this stack."""
    try:
        about = json.loads((directory / _NOTES / ABOUT).read_text())
    except (OSError, ValueError):
        raise CommandError("SNAPSHOT: got one that make backup has not made, want one that it has; look at restic snapshots") from None
    if about["stack"] != deployment.stack:
        raise CommandError(f"SNAPSHOT: got one of stack {about['stack']}, want one of {deployment.stack}; look at restic snapshots")
    return about


def _move(deployment: Deployment, identity: str) -> None:
    """To another cluster: configuration and secrets stay, and none of the objects that the state knows is there."""
    cli = deployment.cli
    state = json.loads(cli.run("stack", "export"))
    state["deployment"]["resources"] = []
    cli.run("stack", "import", stdin=json.dumps(state))
    config = cli.read_config()
    cluster = {**(config.get("modelfleet:cluster") or {}), "context": deployment.context, "identity": identity}
    cli.write_config({**config, "modelfleet:cluster": cluster})
    say(f"restore: {deployment.context} is another cluster than the one of the backup: keys and secrets are the same, its objects are new")


def _models(catalog: Path) -> Sequence[str]:
    """A line for each model with its digest, by which an operator sees that the same ones are back."""
    try:
        models = json.loads(catalog.read_text())["models"]
    except (OSError, ValueError, KeyError):
        return []
    return [f"{each['name']} was {each['digest']}" for each in models]


@contextmanager
def _nobody_else(deployment: Deployment) -> Iterator[None]:
    """While no update changes the state. Raises CliError for one that runs."""
    deployment.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = deployment.state_dir / _LOCK
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError(f"{path}: got a running update of stack {deployment.stack}, want none; wait for it to end") from None
        yield
