"""A stack on a cluster: its configuration and secrets, its update, what came of it."""

import json
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.analysis.explain.causes import LASTING, explain
from infra.analysis.explain.facts import Finding
from infra.analysis.explain.snapshot import SnapshotError, collect
from infra.engine.cli import PulumiCli
from infra.engine.errors import CommandError
from infra.engine.progress import Watched
from infra.engine.recorded import Recorded, longest_wait_s, objects
from infra.engine.shared import SharedStack
from infra.lifecycle import rollouts
from infra.program.cluster import identity as cluster_identity
from infra.program.settings import keys
from infra.program.settings.committed import stack_config
from infra.program.settings.section import SettingsError
from infra.program.settings.tls import LOCAL_NAMES, service_names
from modelfleet_outputs import FleetOutputs, parse

_TLS = "modelfleet:apiServerTls"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A stack on a cluster: where it is, and where its state is."""

    stack: str
    context: str
    kubeconfig: str
    state_dir: Path
    builder: str = "prebuilt"
    """`images.builder` of the stack."""

    address: str = ""
    """Of the cluster, for a certificate; empty where only a forwarded port is sure to lead there."""
    shared: bool = False
    """The state is in a backend of the user's, and the committed file is the configuration."""

    @property
    def cli(self) -> PulumiCli:
        kind, env = SharedStack if self.shared else PulumiCli, {"KUBECONFIG": self.kubeconfig}
        return kind(stack=self.stack, state_dir=self.state_dir, env=env, builder=self.builder, watch=self._watch())

    @property
    def key_file(self) -> Path:
        return self.state_dir / "api-key"

    def key(self) -> str:
        """A key of the API server. Raises CliError."""
        if not self.shared:
            return self.key_file.read_text()
        return keys.widest(json.loads(self.cli.run("config", "get", "modelfleet:apiKeys")))

    @property
    def signs_itself(self) -> bool:
        """Whether the API server's certificate is of an authority of the stack's own."""
        wanted = self.cli.read_config().get("modelfleet:apiServer") or {}
        return bool((wanted.get("tls") or {}).get("own"))

    def keep_authority(self, outputs: FleetOutputs) -> Path | None:
        """A file with the authority that clients have to trust; None where it is a public one, or there is no TLS."""
        if outputs.authority is None:
            return None
        file = self.state_dir / "authority.pem"
        file.write_text(outputs.authority)
        return file

    @property
    def namespace(self) -> str:
        """Namespace of the stack by its private configuration, or else by the committed one."""
        cluster = self.cli.read_config().get("modelfleet:cluster") or stack_config(self.stack).get("modelfleet:cluster", {})
        return str(cluster.get("namespace", "modelfleet"))

    @property
    def identity(self) -> str:
        """Of the cluster that the stack was made for; empty before the first update."""
        return str(self.cli.read_config().get("modelfleet:cluster", {}).get("identity", ""))

    def findings(self) -> list[Finding]:
        """What `make explain` would say now; nothing when the cluster cannot be read."""
        try:
            return explain(collect(self.context, self.kubeconfig, self.namespace, None))
        except SnapshotError:
            return []

    def _watch(self) -> Callable[[], Watched]:
        """A function that says what an update waits for. A lasting cause that it sees twice in a row ends the update."""
        before: set[tuple[str, str]] = set()

        def look() -> Watched:
            nonlocal before
            found = self.findings()
            lasting = {(each.subject, each.cause): each for each in found if each.cause in LASTING}
            hopeless = next((str(each) for name, each in lasting.items() if name in before), "")
            before = set(lasting)
            return Watched([f"waiting: {each}" for each in found], hopeless)

        return look

    def configure(self, overrides: Mapping[str, Any]) -> None:
        """Write the private configuration: the committed values, changed by `overrides`, and the secrets.

        An override is merged into its section; a list such as `models` takes the place of the committed one. Secrets are made at the first
        call, and stay the same afterwards.
        """
        cli = self.cli
        cli.ensure_stack()
        if self.shared:
            self._require_configured(overrides)
            return
        before = cli.read_config()
        # The encrypted values of the committed file are left out: they are for the key of that file, and this stack has another key.
        config = {key: value for key, value in stack_config(self.stack).items() if not _is_encrypted(value)}
        config["modelfleet:cluster"] = {
            **config.get("modelfleet:cluster", {}),
            "context": self.context,
            "identity": self.identity or cluster_identity(self.context, self.kubeconfig),
        }
        for section, values in overrides.items():
            key = f"modelfleet:{section}"
            config[key] = {**config.get(key, {}), **values} if isinstance(values, Mapping) else values
        kept = {name: value for name, value in before.items() if _is_encrypted(value)}
        cli.write_config(config | kept)
        if "modelfleet:apiKeys" not in kept:
            key = secrets.token_urlsafe(24)
            with os.fdopen(os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(key)
            cli.run("config", "set", "--secret", "modelfleet:apiKeys", stdin=json.dumps({"first": {"key": key}}))
        self._certify(config)
        if "modelfleet:cachePassword" not in kept:
            cli.run("config", "set", "--secret", "modelfleet:cachePassword", stdin=secrets.token_hex(16))

    def _certify(self, config: Mapping[str, Any]) -> None:
        """Have a certificate for the API server, where an authority of the stack's own is to sign it. It stays while it is good."""
        wanted = config.get("modelfleet:apiServer") or {}
        if not (wanted.get("tls") or {}).get("own"):
            return
        from infra.preparation.certificates import api_server_tls  # noqa: PLC0415 (half a second to import, and few stacks need it)

        before = json.loads(self.cli.run("config", "get", _TLS)) if _TLS in self.cli.read_config() else None
        inside = service_names(str(config["modelfleet:cluster"].get("namespace", "modelfleet")))
        names = [*inside, *LOCAL_NAMES, *filter(None, [self.address, wanted.get("host")])]
        made = api_server_tls(names, before)
        if made != before:
            self.cli.run("config", "set", "--secret", _TLS, stdin=json.dumps(made))

    def _require_configured(self, overrides: Mapping[str, Any]) -> None:
        """The committed file says all of it: other operators have no other one. Raises CommandError."""
        file, found = f"Pulumi.{self.stack}.yaml", str(self.cli.read_config().get("modelfleet:cluster", {}).get("context", ""))
        if found != self.context:
            got = f"got {found!r} in {file}" if found else f"got nothing in {file}"
            raise CommandError(f"modelfleet:cluster.context: {got}, want {self.context}, which CONTEXT says; set it, and identity with it")
        if overrides:
            section, values = next(iter(overrides.items()))
            raise CommandError(
                f"modelfleet:{section}: got {json.dumps(values)} on the command line, want it in {file}, which others use; set it there"
            )

    def take_registry_auth(self, overrides: Mapping[str, Any], file: str) -> None:
        """Keep the logins of a dockerconfigjson in the private configuration, encrypted. Raises SettingsError."""
        try:
            text = Path(file).read_text()
        except OSError as error:
            raise SettingsError(f"PULL_AUTH: got {file!r} ({error.strerror}), want a dockerconfigjson; see docs/images.md") from None
        if self.shared:
            command = "pulumi config set --secret modelfleet:registryAuth"
            raise SettingsError(f"PULL_AUTH: got it with PULUMI_BACKEND_URL, want it in the stack's own file; run {command} < {file}")
        self.configure(overrides)
        self.cli.run("config", "set", "--secret", "modelfleet:registryAuth", stdin=text)

    def deploy(self, overrides: Mapping[str, Any], allow_data_loss: Collection[str] = ()) -> FleetOutputs:
        """`pulumi up`. Raises CliError with Pulumi's message, or RefusedError, also for data that `allow_data_loss` does not name."""
        self.configure(overrides)
        self.update(allow_data_loss)
        return self.outputs()

    def update(self, allow_data_loss: Collection[str] = ()) -> None:
        """`pulumi up` with the configuration as it is, until StatefulSets have their newest pods. Raises as `deploy` does."""
        self.cli.update("up", allow_data_loss)
        limit_s = longest_wait_s(json.loads(self.cli.run("stack", "export"))["deployment"].get("resources") or [])
        rollouts.until_finished(self.context, self.kubeconfig, self.namespace, self._watch(), limit_s)

    def preview(self) -> list[str]:
        """A line for every object that an `up` would change now. Raises CliError and CommandError, and RefusedError for what it refuses."""
        if not self.cli.has_stack():
            raise CommandError(f"preview: got no stack {self.stack} on {self.context} yet, want one to compare with; run make up")
        self.configure({})
        return self.cli.plan().lines()

    def outputs(self) -> FleetOutputs:
        return parse(json.loads(self.cli.run("stack", "output", "fleet", "--json")))

    def objects(self) -> list[Recorded]:
        """Every object that the state knows, sorted; none without a state. Raises CliError."""
        if not self.cli.has_stack():
            return []
        return objects(json.loads(self.cli.run("stack", "export"))["deployment"].get("resources") or [])

    def destroy(self) -> None:
        """`pulumi destroy`; what is protected stays, with what it needs. Raises CliError."""
        self.cli.update("destroy")


def _is_encrypted(value: Any) -> bool:
    """Whether it is encrypted, or a part of it is, as a key beside its owner."""
    return isinstance(value, dict) and ("secure" in value or any(map(_is_encrypted, value.values())))
