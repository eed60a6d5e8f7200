"""One stack of Pulumi, with an environment and a backend of its own. `shared` has one whose backend is the user's."""

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra import WORK
from infra.engine import changes, interrupted
from infra.engine.binaries import own_pulumi
from infra.engine.errors import CliError
from infra.engine.operation import Program, Told, error_text, operate, select
from infra.engine.progress import Watched


@dataclass(frozen=True, kw_only=True)
class PulumiCli:
    """One stack in one backend. Its configuration is a private file: the committed Pulumi.<stack>.yaml is never written."""

    stack: str
    state_dir: Path
    """Backend, passphrase and configuration; mode 0700."""
    program: Path = WORK
    """Directory of the Pulumi.yaml."""
    env: Mapping[str, str] = field(default_factory=dict)
    builder: str = "prebuilt"
    """`images.builder` of the stack: it decides which plugins Pulumi needs."""
    watch: "Callable[[], Watched]" = Watched
    """Says what an update waits for. Called each time that Pulumi has printed nothing for `QUIET_S` seconds."""

    def environment(self) -> dict[str, str]:
        """The environment of Pulumi: our plugins, our backend, no downloads, no question for newer versions."""
        ours, path = own_pulumi(self.builder), os.environ.get("PATH", os.defpath)
        backend = self.state_dir / "state"
        backend.mkdir(parents=True, exist_ok=True)
        self.state_dir.chmod(0o700)
        own = {
            "PATH": f"{ours.binaries}:{path}" if ours else path,
            # Without the metadata files beside each state file: they are not replaced atomically, and nothing needs them.
            "PULUMI_BACKEND_URL": f"{backend.as_uri()}?metadata=skip",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(self._passphrase_file()),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            # The stack owns the fields that it declares: an update sets a field back that was changed by hand.
            "PULUMI_K8S_ENABLE_PATCH_FORCE": "true",
        }
        if ours:
            own |= {
                "PULUMI_HOME": str(ours.home),
                "PULUMI_CREDENTIAL_STORE": "plaintext",
                "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
                "PULUMI_IGNORE_AMBIENT_PLUGINS": "true",
            }
        # `env` names the cluster. A KUBECONFIG of the caller must not.
        inherited = {key: value for key, value in os.environ.items() if key not in ("PULUMI_CONFIG_PASSPHRASE", "KUBECONFIG")}
        return inherited | own | dict(self.env)

    def _passphrase_file(self) -> Path:
        path = self.state_dir / "passphrase"
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
        return path

    def run(self, *arguments: str, stdin: str = "") -> str:
        """Standard output of `pulumi <arguments>`. Raises CliError with the program's own message.

        For what `pulumi.automation` does with secrets in arguments or in plain files: configuration, export, import, outputs.
        """
        environment = self.environment()
        argv = [_pulumi(environment), *arguments, "--non-interactive", "--color", "never", "--stack", self.stack]
        argv += ["--config-file", str(self.config_file)] if arguments[0] == "config" else []
        directory = self._project if arguments[:2] == ("stack", "init") else self.program
        done = subprocess.run(argv, cwd=directory, env=environment, input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise CliError(error_text(done.stderr) or f"pulumi {arguments[0]}: got exit status {done.returncode}, want 0")
        return done.stdout

    def up(self, **options: Any) -> Told:
        """`pulumi up`, with options of the automation API. Nothing is previewed or refused, and nothing said. Raises CliError."""
        return _succeeded(self._operate("up", **options))

    def preview(self, **options: Any) -> changes.Plan:
        """`pulumi preview`, with options of the automation API. Raises CliError, which has a line for each change that it saw."""
        told = self._operate("preview", **options)
        plan = changes.read(told)
        if told.failure:
            raise CliError("\n".join([told.reason, *map(changes.line, plan.steps)]))
        return plan

    def destroy(self, **options: Any) -> None:
        """`pulumi destroy`, with options of the automation API. Nothing is refused, and nothing said. Raises CliError."""
        _succeeded(self._operate("destroy", **options))

    def _operate(self, name: str, *, watched: bool = False, **options: Any) -> Told:
        environment = self.environment()
        program = Program(_pulumi(environment), environment)
        begin = getattr(select(self.stack, self.program, program), name)
        options = {"suppress_outputs": True, "config_file": str(self.config_file), **options}
        if name != "preview":
            options["show_secrets"] = False
        return operate(name, program, lambda on_event: begin(on_event=on_event, **options), self.watch if watched else None)

    @property
    def config_file(self) -> Path:
        return self.state_dir / f"Pulumi.{self.stack}.yaml"

    @property
    def _project(self) -> Path:
        """A directory with a copy of the project file. `stack init` writes a file beside it, which must not be in the repository."""
        return self.state_dir / "project"

    def update(self, command: str, allow_data_loss: Collection[str] = ()) -> None:
        """`pulumi up` or `destroy`, against the objects that the cluster has now. Repairs the state first if an update was killed.

        `up` is previewed first, and refused when data would go that `allow_data_loss` (`Kind/name`) does not name. Raises CliError
        or RefusedError.
        """
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.state_dir / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                path = self.state_dir / "lock"
                raise CliError(f"{path}: got a running update of stack {self.stack}, want none; wait for it to end") from None
            self._recover()
            if command == "destroy":
                _succeeded(self._operate(command, watched=True, refresh=True, exclude_protected=True))
            else:
                plan = self.plan(allow_data_loss)
                for line in plan.drift():
                    print(f"drift: {line}", file=sys.stderr, flush=True)
                _succeeded(self._operate(command, watched=True, refresh=bool(plan.steps)))

    def plan(self, allowed: Collection[str] = ()) -> changes.Plan:
        """What an `up` would do now to the objects that the cluster has. Raises CliError, or RefusedError for what it would refuse."""
        plan = self._plan()
        changes.refuse_data_loss(plan, allowed)
        changes.refuse_the_impossible(plan, allowed)
        gone = plan.removed(allowed)
        if plan.errors and {urn for urn, _ in plan.errors if urn} <= gone:
            # A preview asks the API server about each new object. The API server refuses the new form of an object that is to be
            # replaced, because the old one is still there, and the preview ends. So the other objects are previewed by themselves.
            rest = self._plan(exclude=sorted(gone))
            changes.refuse_data_loss(rest, allowed)
            changes.refuse_the_impossible(rest, allowed)
            plan = changes.Plan([*plan.steps, *rest.steps], rest.recorded, rest.errors)
        if plan.errors:
            about = [message for urn, message in plan.errors if urn]
            raise CliError("\n".join(about or [message for _, message in plan.errors]))
        return plan

    def _plan(self, **options: Any) -> changes.Plan:
        told = self._operate("preview", refresh=True, **options)
        if told.failure and not told.errors:
            raise CliError(told.reason)
        return changes.read(told)

    def _recover(self) -> None:
        """Repair the state after an update that was killed. No other update runs: it would hold our lock."""
        # These files are of an older release of ours, or of a `pulumi` that was run by hand. Pulumi cannot read a state with half of one.
        for metadata in self._backend.rglob("*.attrs"):
            metadata.unlink()
        if any((self._backend / "locks").rglob("*.json")):
            self.run("cancel", "--yes")
        if self._checkpoint.exists() and interrupted.has_pending(self._checkpoint.read_text()):
            self.run("stack", "import", stdin=interrupted.adopt(self.run("stack", "export")))

    @property
    def _backend(self) -> Path:
        return self.state_dir / "state" / ".pulumi"

    @property
    def _checkpoint(self) -> Path:
        project = yaml.safe_load((self.program / "Pulumi.yaml").read_text())["name"]
        return self._backend / "stacks" / project / f"{self.stack}.json"

    def has_stack(self) -> bool:
        """Whether the stack is in its backend."""
        return self._checkpoint.exists()

    def ensure_stack(self) -> None:
        """Make the stack in its backend unless it is there."""
        self.environment()
        if not self.has_stack():
            self._project.mkdir(exist_ok=True)
            shutil.copyfile(self.program / "Pulumi.yaml", self._project / "Pulumi.yaml")
            self.run("stack", "init", "--no-select", "--secrets-provider", "passphrase")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the private configuration file. The salt that encrypts its secrets stays the same. Call after `ensure_stack`."""
        salt = yaml.safe_load((self._project / f"Pulumi.{self.stack}.yaml").read_text())["encryptionsalt"]
        fresh = self.config_file.with_suffix(".partial")
        fresh.write_text(yaml.safe_dump({"encryptionsalt": salt, "config": dict(config)}))
        fresh.replace(self.config_file)

    def read_config(self) -> dict[str, Any]:
        """The private configuration, empty before the first write."""
        try:
            return dict(yaml.safe_load(self.config_file.read_text())["config"])
        except FileNotFoundError:
            return {}


def _pulumi(environment: Mapping[str, str]) -> str:
    return shutil.which("pulumi", path=environment["PATH"]) or "pulumi"


def _succeeded(told: Told) -> Told:
    """What was told by an operation that went well. Raises CliError for another."""
    if told.failure:
        raise CliError(told.reason)
    return told
