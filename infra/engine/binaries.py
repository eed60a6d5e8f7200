"""Which `pulumi` runs: the user's own, or one that is built from source where the PATH has none."""

import functools
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from infra.engine.errors import CliError

if TYPE_CHECKING:
    from infra.engine.own_tools import OwnPulumi

OLDEST = (3, 259, 0)
"""Version of the SDK in pyproject.toml: an older engine may not know what the SDK asks of it."""
PROVIDERS = {"kubernetes": "4.25.0", "docker-build": "0.0.22"}
"""Plugin to version: those of the SDKs in pyproject.toml, or the engine would look for others."""


def needs_own_tools() -> bool:
    """Whether Pulumi is to be built, since the user has none. Raises CliError for one that is too old for the SDK."""
    found = shutil.which("pulumi")
    if found is None:
        return True
    version = _version_of(found)
    if version < OLDEST:
        got, want = (".".join(map(str, each)) for each in (version, OLDEST))
        raise CliError(f"{found}: got version {got}, want {want} or newer; upgrade it, or take it off the PATH, and ours is built")
    return False


@functools.cache
def _version_of(program: str) -> tuple[int, ...]:
    """Version of a `pulumi`; says on stderr that this one is used. Raises CliError."""
    environment = os.environ | {"PULUMI_SKIP_UPDATE_CHECK": "true"}
    done = subprocess.run([program, "version"], env=environment, capture_output=True, text=True)
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", done.stdout.strip())
    if match is None:
        raise CliError(
            f"{program}: got {(done.stdout or done.stderr).strip()[:200]!r} for its version, want a Pulumi CLI; install it again"
        )
    print(f"pulumi: using {program}, version {match[0].removeprefix('v')}", file=sys.stderr, flush=True)
    return tuple(int(part) for part in match.groups())


def own_pulumi(builder: str = "prebuilt") -> "OwnPulumi | None":
    """Our own Pulumi, built where it is not there yet, with the provider plugins; None when the user's is to be used.

    Raises CliError when `builder` needs a plugin that only the vendor has, and CommandError when the build fails.
    """
    if not needs_own_tools():
        return None
    if builder == "docker":
        raise CliError(
            "modelfleet:images.builder: got docker, want the vendor's pulumi on the PATH, which brings that plugin; "
            "install it, or set the builder to docker-build"
        )
    # The compiler of the embedded cluster's tools is of no use to those who have a Pulumi.
    from infra.engine import own_tools  # noqa: PLC0415

    return own_tools.install(PROVIDERS if builder == "docker-build" else {"kubernetes": PROVIDERS["kubernetes"]})
