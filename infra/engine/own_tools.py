"""Our own Pulumi: built from source with its provider plugins, by the toolchain of the embedded cluster."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devcluster import archive, toolchain
from infra.engine.errors import CliError, CommandError

_ENGINE = ("pulumi", "pulumi-language-python")
TOOLS = (*_ENGINE, "pulumi-resource-kubernetes")
"""Not needed by a user who has `pulumi` on the PATH."""


@dataclass(frozen=True)
class OwnPulumi:
    """A Pulumi that was built from source."""

    binaries: Path
    """Directory of its programs."""
    home: Path
    """Its PULUMI_HOME, with the provider plugins."""


def take(tools: str) -> None:
    """Put built tools into the cache: those of the archive that TOOLS names. Raises CommandError."""
    try:
        archive.take(tools)
    except toolchain.ToolchainError as error:
        raise CommandError(str(error)) from None


def install(plugins: Mapping[str, str]) -> OwnPulumi:
    """Pulumi with these plugins (name to version), built where they are not there yet. Raises CliError or CommandError."""
    home = toolchain.cache_root() / "pulumi"
    try:
        binaries = toolchain.ensure([*_ENGINE, *(f"pulumi-resource-{name}" for name in plugins)])
    except toolchain.ToolchainError as error:
        raise CommandError(str(error)) from None
    for name, version in plugins.items():
        _install_plugin(binaries, home, name, version)
    return OwnPulumi(binaries, home)


def _install_plugin(binaries: Path, home: Path, name: str, version: str) -> None:
    provider = binaries / f"pulumi-resource-{name}"
    installed = home / "plugins" / f"resource-{name}-v{version}" / provider.name
    if installed.exists() and installed.stat().st_size == provider.stat().st_size:
        return
    environment = os.environ | {"PULUMI_HOME": str(home), "PULUMI_SKIP_UPDATE_CHECK": "true", "PULUMI_CREDENTIAL_STORE": "plaintext"}
    argv = [str(binaries / "pulumi"), "plugin", "install", "resource", name, version, "--file", str(provider), "--reinstall"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CliError(f"pulumi plugin install {name}: got {done.stderr.strip()[-500:]!r}, want success; look at {home}")
