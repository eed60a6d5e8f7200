"""The Pulumi CLI: whose it is, with which environment, on which stack."""

import fcntl
import functools
import json
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from devcluster import toolchain
from devcluster.toolchain import cache_root
from infra import changes, interrupted

ROOT = Path(__file__).resolve().parent.parent
_ENGINE = ("pulumi", "pulumi-language-python")
TOOLS = (*_ENGINE, "pulumi-resource-kubernetes")
"""Not needed by a user who has `pulumi` on the PATH."""
QUIET_S = 12.0
"""After so long without a line, what is waited for is looked up and said: with the look itself, less than 15 s."""
_TELLING = ("Policies:", "Diagnostics:")
"""Headings of Pulumi's output below which it says what went wrong."""
_CONFIGURED = ("up", "preview", "destroy", "refresh", "config")
"""Commands that take --config-file."""
_OLDEST = (3, 259, 0)
"""Version of the SDK in pyproject.toml: an older engine may not know what the SDK asks of it."""
PROVIDERS = {"kubernetes": "4.25.0", "docker-build": "0.0.22"}
"""Plugin to version: those of the SDKs in pyproject.toml, or the engine would look for others."""


class CliError(Exception):
    """Pulumi ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Watched:
    """What an update that has gone quiet waits for."""

    lines: Sequence[str] = ()
    hopeless: str = ""
    """A cause that no waiting takes away; the update is ended with it."""


@dataclass(frozen=True, kw_only=True)
class PulumiCli:
    """One stack in one backend. Its configuration is a private file: the committed Pulumi.<stack>.yaml is never written."""

    stack: str
    state_dir: Path
    """Backend, passphrase and configuration; mode 0700."""
    program: Path = ROOT
    """Directory of the Pulumi.yaml."""
    env: Mapping[str, str] = field(default_factory=dict)
    builder: str = "prebuilt"
    """`images.builder` of the stack: it decides which plugins there must be."""
    watch: "Callable[[], Watched]" = Watched
    """Asked what an update waits for, each time that Pulumi says nothing for `QUIET_S`."""

    def environment(self) -> dict[str, str]:
        """What Pulumi runs with: our plugins, our backend, no downloads, no telemetry of versions."""
        binaries = pulumi_binaries(self.builder)
        backend = self.state_dir / "state"
        backend.mkdir(parents=True, exist_ok=True)
        self.state_dir.chmod(0o700)
        own = {
            "PATH": f"{binaries}:{os.environ.get('PATH', os.defpath)}" if binaries else os.environ.get("PATH", os.defpath),
            # Without the metadata files beside each state file: they are not replaced atomically, and nothing needs them.
            "PULUMI_BACKEND_URL": f"{backend.as_uri()}?metadata=skip",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(self._passphrase_file()),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DIY_BACKEND_DISABLE_CHECKPOINT_BACKUPS": "true",
            # The stack owns what it declares: a field that was changed by hand is set back, not argued about.
            "PULUMI_K8S_ENABLE_PATCH_FORCE": "true",
        }
        if binaries:
            own |= {
                "PULUMI_HOME": str(cache_root() / "pulumi"),
                "PULUMI_CREDENTIAL_STORE": "plaintext",
                "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
                "PULUMI_IGNORE_AMBIENT_PLUGINS": "true",
            }
        # Which cluster is meant is always said in `env`, never inherited.
        inherited = {key: value for key, value in os.environ.items() if key not in ("PULUMI_CONFIG_PASSPHRASE", "KUBECONFIG")}
        return inherited | own | dict(self.env)

    def _passphrase_file(self) -> Path:
        path = self.state_dir / "passphrase"
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
        return path

    def run(self, *arguments: str, stdin: str | None = None, progress: bool = False, check: bool = True) -> str:
        """Standard output of `pulumi <arguments>`. Raises CliError with the program's own message.

        `progress` shows each resource's line on stderr as it comes, and asks `watch` when none comes. Without `check`, an error that left
        output is for the caller to read.
        """
        init = arguments[:2] == ("stack", "init")
        argv = ["pulumi", *arguments, "--non-interactive", "--color", "never", "--stack", self.stack]
        argv += ["--config-file", str(self.config_file)] if arguments[0] in _CONFIGURED else []
        environment = self.environment()
        argv[0] = shutil.which("pulumi", path=environment["PATH"]) or "pulumi"
        errors: list[str] = []
        lines: list[str] = []
        doomed = ""
        with subprocess.Popen(
            argv,
            cwd=self._project if init else self.program,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None  # noqa: S101 (pipes were asked for)
            reader = threading.Thread(target=lambda: errors.extend(process.stderr or []), daemon=True)
            reader.start()
            process.stdin.write(stdin or "")
            process.stdin.close()
            for line in _with_signs_of_life(process.stdout or []):
                if line is None:
                    said = self.watch() if progress and not doomed else Watched()
                    for each in said.lines or [f"pulumi: {arguments[0]} goes on"]:
                        print(each, file=sys.stderr, flush=True)
                    if said.hopeless:
                        # Pulumi lets what it has begun end, and keeps the state.
                        doomed = said.hopeless
                        process.send_signal(signal.SIGINT)
                    continue
                lines.append(line)
                if progress and _is_progress(line):
                    print(f"pulumi: {line.strip()}", file=sys.stderr, flush=True)
            reader.join()
        if doomed:
            raise CliError(doomed)
        if process.returncode and (check or not lines):
            raise CliError(_message("".join(lines), "".join(errors)) or f"pulumi {arguments[0]}: got exit status {process.returncode}")
        return "".join(lines)

    @property
    def config_file(self) -> Path:
        return self.state_dir / f"Pulumi.{self.stack}.yaml"

    @property
    def _project(self) -> Path:
        """A directory with a copy of the project file: `stack init` writes beside it, and ours is committed."""
        return self.state_dir / "project"

    def update(self, command: str, allow_data_loss: Collection[str] = ()) -> None:
        """`pulumi up` or `destroy`, also after one that was killed, and against what the cluster holds now.

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
            refresh = command != "up" or self._check(allow_data_loss)
            options = ("--yes", "--skip-preview", "--suppress-outputs", *(["--refresh"] if refresh else []))
            self.run(command, *options, progress=True)

    def _check(self, allowed: Collection[str]) -> bool:
        """Preview `up`, refuse a loss of data, name drift. Returns whether an object would change. Raises CliError or RefusedError."""
        plan = self._plan()
        changes.refuse_data_loss(plan, allowed)
        changes.refuse_the_impossible(plan, allowed)
        gone = plan.removed(allowed)
        if plan.errors and {urn for urn, _ in plan.errors if urn} <= gone:
            # The API server is asked what it would say while the object to be replaced is still there: it says no, and the preview ends.
            # So the rest is looked at by itself.
            rest = self._plan(*(f"--exclude={urn}" for urn in gone))
            changes.refuse_data_loss(rest, allowed)
            changes.refuse_the_impossible(rest, allowed)
            plan = changes.Plan([*plan.steps, *rest.steps], rest.recorded, rest.errors)
        if plan.errors:
            about = [message for urn, message in plan.errors if urn]
            raise CliError("\n".join(about or [message for _, message in plan.errors]))
        for line in plan.drift():
            print(f"drift: {line}", file=sys.stderr, flush=True)
        return bool(plan.steps)

    def _plan(self, *options: str) -> changes.Plan:
        output = self.run("preview", "--refresh", "--json", *options, check=False)
        try:
            return changes.read(output)
        except ValueError:
            raise CliError(output.strip()[-4000:]) from None

    def _recover(self) -> None:
        """Make good what a killed update left behind. No other one runs, or it would hold our lock."""
        # Of an older release of ours, or of `pulumi` run by hand. Half of one makes the state unreadable to Pulumi.
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
        """Write the private configuration file; the key material of its secrets stays. Call after `ensure_stack`."""
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


def _with_signs_of_life(stream: Iterable[str]) -> Iterator[str | None]:
    """The lines of a stream as they come, and None whenever a quiet time passes without one that a person is shown."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    shown = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=max(0.0, shown + QUIET_S - time.monotonic()))
        except queue.Empty:
            yield None
            shown = time.monotonic()
            continue
        if line is None:
            return
        if _is_progress(line):
            shown = time.monotonic()
        yield line


def _is_progress(line: str) -> bool:
    text = line.strip()
    return text.startswith(("+", "-", "~")) and any(word in text for word in ("created (", "updated (", "deleted (", "replaced ("))


def _message(output: str, errors: str) -> str:
    """The part of Pulumi's output that says what went wrong."""
    if output.startswith("{"):
        said = [each["message"].strip() for each in json.loads(output).get("diagnostics", []) if each.get("severity") == "error"]
        return "\n".join(line.removeprefix("error: ") for line in said if line != "error: preview failed" or len(said) == 1)
    lines = (output + errors).splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith(_TELLING)), None)
    if start is None:
        return "\n".join(line for line in lines if line.strip())[-4000:]
    found: list[str] = []
    for line in lines[start + 1 :]:
        if line.startswith(("Resources:", "Outputs:", "Duration:")):
            break
        if line.strip() and not line.startswith(_TELLING):
            found.append(line.strip())
    return "\n".join(found)


def needs_own_tools() -> bool:
    """Whether Pulumi is to be built, since the user has none. Raises CliError for one that is too old for the SDK."""
    found = shutil.which("pulumi")
    if found is None:
        return True
    version = _version_of(found)
    if version < _OLDEST:
        got, want = (".".join(map(str, each)) for each in (version, _OLDEST))
        raise CliError(f"{found}: got version {got}, want {want} or newer; upgrade it, or take it off the PATH, and ours is built")
    return False


@functools.cache
def _version_of(program: str) -> tuple[int, ...]:
    """Of a `pulumi`; says which one is used. Raises CliError."""
    environment = os.environ | {"PULUMI_SKIP_UPDATE_CHECK": "true"}
    done = subprocess.run([program, "version"], env=environment, capture_output=True, text=True)
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", done.stdout.strip())
    if match is None:
        raise CliError(
            f"{program}: got {(done.stdout or done.stderr).strip()[:200]!r} for its version, want a Pulumi CLI; install it again"
        )
    print(f"pulumi: using {program}, version {match[0].removeprefix('v')}", file=sys.stderr, flush=True)
    return tuple(int(part) for part in match.groups())


def pulumi_binaries(builder: str = "prebuilt") -> Path | None:
    """Where our own tools are, with the provider plugins installed; None when the user's own `pulumi` is to be used.

    Raises CliError when `builder` needs a plugin that only the vendor has.
    """
    if not needs_own_tools():
        return None
    if builder == "docker":
        raise CliError(
            "modelfleet:images.builder: got docker, want the vendor's pulumi on the PATH, which brings that plugin; "
            "install it, or set the builder to docker-build"
        )
    wanted = dict(PROVIDERS) if builder == "docker-build" else {"kubernetes": PROVIDERS["kubernetes"]}
    binaries = toolchain.ensure([*_ENGINE, *(f"pulumi-resource-{name}" for name in wanted)])
    for name, version in wanted.items():
        _install_plugin(binaries, name, version)
    return binaries


def _install_plugin(binaries: Path, name: str, version: str) -> None:
    home = cache_root() / "pulumi"
    provider = binaries / f"pulumi-resource-{name}"
    installed = home / "plugins" / f"resource-{name}-v{version}" / provider.name
    if installed.exists() and installed.stat().st_size == provider.stat().st_size:
        return
    environment = os.environ | {"PULUMI_HOME": str(home), "PULUMI_SKIP_UPDATE_CHECK": "true", "PULUMI_CREDENTIAL_STORE": "plaintext"}
    argv = [str(binaries / "pulumi"), "plugin", "install", "resource", name, version, "--file", str(provider), "--reinstall"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CliError(f"pulumi plugin install {name}: got {done.stderr.strip()[-500:]!r}, want success; look at {home}")
