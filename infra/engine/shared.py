"""A stack whose state is in a backend that the user names by PULUMI_BACKEND_URL: S3, GCS, Azure, Pulumi Cloud, a shared directory.

Other people and pipelines work on it, too. So its configuration is the committed Pulumi.<stack>.yaml, with the secrets encrypted by the
stack's own secrets provider; nothing of the stack is kept on this machine, and no lock of others is broken.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.engine import interrupted
from infra.engine.cli import PulumiCli
from infra.engine.errors import CliError, CommandError

_BACKEND = "PULUMI_BACKEND_URL"


def backend() -> str:
    """The backend that the user names; empty without one."""
    return os.environ.get(_BACKEND, "")


class SharedStack(PulumiCli):
    """Such a stack. `state_dir` holds the lock of this machine's updates alone."""

    def environment(self) -> dict[str, str]:
        """The user's own, with our plugins where Pulumi is ours, and the guard of fields."""
        own = super().environment()
        for name in (_BACKEND, "PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"):
            own.pop(name, None)
            if name in os.environ:
                own[name] = os.environ[name]
        return own

    def _passphrase_file(self) -> Path:
        """None of ours; `environment` takes the name out again."""
        return self.state_dir / "passphrase"

    @property
    def config_file(self) -> Path:
        return self.program / f"Pulumi.{self.stack}.yaml"

    def has_stack(self) -> bool:
        """Whether the stack is in the backend. Raises CliError when the backend does not say."""
        try:
            self.run("stack", "export")
        except CliError as error:
            if "no stack named" in str(error):
                return False
            raise
        return True

    def ensure_stack(self) -> None:
        """Raises CommandError where the stack is not in the backend: how its secrets are encrypted is for its owner to choose."""
        if not self.has_stack():
            raise CommandError(
                f"{_BACKEND}: got {backend()} without a stack {self.stack}, want one; "
                f"run pulumi stack init {self.stack}, with --secrets-provider if it is not to be a passphrase; see docs/pulumi.md"
            )

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Raises CommandError: the committed file is its owner's."""
        raise CommandError(f"{self.config_file}: got {sorted(config)} to write, want its owner to do that; edit it")

    def read_config(self) -> dict[str, Any]:
        """The committed configuration. Secrets stay encrypted."""
        try:
            return dict((yaml.safe_load(self.config_file.read_text()) or {}).get("config") or {})
        except FileNotFoundError:
            return {}

    def _recover(self) -> None:
        """Take what was being created by an update that was killed. A lock may be another operator's, and stays: Pulumi names it."""
        exported = self.run("stack", "export")
        if interrupted.has_pending(exported):
            self.run("stack", "import", stdin=interrupted.adopt(exported))
