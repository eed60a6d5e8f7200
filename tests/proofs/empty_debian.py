"""The directory of a fresh root: an empty Debian, and what the registries' clients of this machine are configured with."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from devcluster import system_images

HOME = Path("/root")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CLIENT_VARIABLES = re.compile(
    r"(https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|GIT_SSL_CAINFO|NODE_EXTRA_CA_CERTS"
    r"|PIP_(CERT|INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|DEFAULT_TIMEOUT)|UV_(DEFAULT_INDEX|INDEX|INDEX_URL|NATIVE_TLS|SYSTEM_CERTS)"
    r"|GOPROXY|GOSUMDB|GONOSUMDB|GONOPROXY|GOPRIVATE|GOINSECURE|(npm_config|NPM_CONFIG)_(registry|REGISTRY|cafile|CAFILE))"
)
"""Where the registries are and whom to trust. No PIP_FIND_LINKS: wheels on this machine's disk are not for a new one."""
_CLIENT_FILES = (".config/pip/pip.conf", ".pip/pip.conf", ".config/uv/uv.toml", ".config/go/env", ".npmrc")
"""Below the home directory."""
_SYSTEM_CLIENT_FILES = ("/etc/pip.conf", "/etc/uv/uv.toml")
ENTER_GROUPS = 'for group in $GROUPS_OF_ROOT; do echo $$ > "$group/cgroup.procs"; done\n'
"""Shell that moves itself into the control groups which the variable names."""


class StepError(AssertionError):
    """A command in the root ended with an error; the message has the end of what it said."""


def bootstrap(suite: str, directory: Path, packages: str, groups: Sequence[Path], scratch: Path) -> None:
    """Make the directory, with every process in `groups`, and temporary files in `scratch`. Raises StepError."""
    main, _, security = (line.split()[1] for line in system_images.sources())
    sources = [f"deb {main} {suite} main", f"deb {main} {suite}-updates main", f"deb {security} {suite}-security main"]
    # apt's answers for suites that this machine does not have are its own.
    options = [f"--aptopt={line}" for line in _apt_client_options()]
    # In the root's group, so that a killed run's mmdebstrap is found, and with mounts that end with it.
    enter = ["sh", "-c", ENTER_GROUPS + 'exec "$@"', "enter", "unshare", "--mount"]
    argv = [
        *enter,
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        '--aptopt=Apt::Install-Recommends "false"',
        *options,
        f"--include={packages}",
    ]
    scratch.mkdir()
    environment = os.environ | {"GROUPS_OF_ROOT": " ".join(map(str, groups)), "TMPDIR": str(scratch)}
    done = subprocess.run([*argv, suite, str(directory), *sources], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise StepError(f"mmdebstrap {suite}: got exit status {done.returncode}, want a root; it said:\n{done.stderr[-2000:]}")


def _apt_client_options() -> list[str]:
    told = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in told if re.match(r'Acquire::(https?|Check-)[^"]*"[^"]+";', line)]


def give_client_configuration(directory: Path) -> dict[str, str]:
    """Copy what the registries' clients are configured with. Returns the environment of every command in the root."""
    environment = {key: value for key, value in os.environ.items() if _CLIENT_VARIABLES.fullmatch(key)}
    files = {Path(value): Path(value) for value in environment.values() if value.startswith("/") and Path(value).is_file()}
    files |= {Path.home() / name: HOME / name for name in _CLIENT_FILES}
    files |= {Path(name): Path(name) for name in _SYSTEM_CLIENT_FILES}
    for source, target in files.items():
        if source.is_file():
            if "find-links" in source.read_text(errors="replace"):
                raise StepError(f"{source}: got find-links, want none: wheels on this disk are not for a new machine; take the line out")
            inside = directory / target.relative_to("/")
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, inside)
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(Path("/etc", name), directory / "etc" / name)
    return {**environment, "PATH": PATH, "HOME": str(HOME), "LANG": "C.UTF-8"}
