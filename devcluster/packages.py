"""Debian packages that the embedded cluster and the tests need: what is missing, and installing it once the user agrees."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from devcluster.layout import ClusterError
from devcluster.toolchain import cache_root

RUN: Mapping[str, Sequence[str]] = {
    "conntrack": ("conntrack",),
    "containernetworking-plugins": ("/usr/lib/cni/bridge",),
    "ipset": ("ipset",),
    "iptables": ("iptables",),
    "iproute2": ("ip",),
    "kmod": ("modprobe",),
    "mmdebstrap": ("mmdebstrap",),
    "mount": ("mount", "umount"),
    "nftables": ("nft",),
    "runc": ("runc",),
    "util-linux": ("nsenter", "unshare"),
}
"""Package to commands or files that a running cluster and its images need."""
COMPILE: Mapping[str, Sequence[str]] = {
    "gcc": ("gcc",),
    "g++": ("g++",),
    "libc6-dev": ("/usr/include/stdlib.h",),
}
"""What compiling the tools needs besides: none of it with an archive of built tools."""
CRIO: Mapping[str, Sequence[str]] = {"conmon": ("conmon",)}
"""What nodes with CRI-O need besides."""
COMPILE_CRIO: Mapping[str, Sequence[str]] = {"libseccomp-dev": ("/usr/include/seccomp.h",), "pkgconf": ("pkg-config",)}
"""What compiling CRI-O needs besides."""
TEST: Mapping[str, Sequence[str]] = {
    "bsdutils": ("script",),
    "chromium": ("chromium",),
    "curl": ("curl",),
    "fonts-dejavu-core": ("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",),
    "make": ("make",),
    "restic": ("restic",),
    "skopeo": ("skopeo",),
    "git": ("git",),
    "tar": ("tar",),
}
"""What tests call besides."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(packages: Iterable[str]) -> list[str]:
    """Those of `packages` whose commands or files are not there, sorted."""
    known = {**RUN, **COMPILE, **CRIO, **COMPILE_CRIO, **TEST}
    path = f"{os.environ.get('PATH', '')}:{_PATH}"

    def there(what: str) -> bool:
        return Path(what).exists() if what.startswith("/") else shutil.which(what, path=path) is not None

    return sorted(package for package in packages if not all(there(what) for what in known[package]))


def ensure(packages: Iterable[str], *, agreed: bool) -> None:
    """Install what is missing, after a question unless the user has `agreed`.

    Raises ClusterError where nobody can be asked, where the answer is no, and where apt fails; it names the packages.
    """
    names = missing(packages)
    if not names:
        return
    listed = " ".join(names)
    if shutil.which("apt-get") is None:
        raise ClusterError(f"packages: got none of {listed}, want them; install them with your distribution's package manager")
    if os.geteuid() != 0:
        raise ClusterError(f"packages: got none of {listed}, want them; run as root apt-get install {listed}")
    if not agreed and not _asked(listed):
        raise ClusterError(f"packages: got none of {listed}, want them; run again with YES=1, or apt-get install {listed}")
    print(f"packages: installing {listed} with apt-get, once", file=sys.stderr, flush=True)
    apt("update", "-qq")
    # What a package recommends is not agreed to.
    apt("install", "-qq", "-y", "--no-install-recommends", *names)


def _asked(listed: str) -> bool:
    """The user's answer; no without a terminal, where a question would wait for ever."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"These Debian packages are missing: {listed}\nInstall them with apt-get now? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def apt(*arguments: str, cwd: Path | None = None) -> None:
    """Run apt-get. Raises ClusterError with what it said."""
    # No service of a package is started: the programs are all that is wanted.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "RUNLEVEL": "1"}
    done = subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = done.stderr.strip()[-500:]
        do = "run dpkg --configure -a, then this again" if "dpkg --configure" in reason else "mend what it names, then run this again"
        raise ClusterError(f"apt-get {' '.join(arguments[:1])}: got {reason!r}, want success; {do}")


def registry_binary() -> Path:
    """Debian's docker-registry."""
    return _unpacked("docker-registry", "docker-registry")


def promtool() -> Path:
    """Prometheus' tool for testing alert rules and configurations."""
    return _unpacked("prometheus", "promtool")


def prometheus() -> Path:
    """The server itself, for tests."""
    return _unpacked("prometheus", "prometheus")


def nginx() -> Path:
    """Before our API server in tests, and beside it in measurements."""
    return _unpacked("nginx", "nginx", "sbin")


def _unpacked(package: str, command: str, place: str = "bin") -> Path:
    """A command of a package that is unpacked beside our tools: installing it would start a service on every address."""
    directory = cache_root() / "debian" / package
    binary = directory / "usr" / place / command
    if binary.exists():
        return binary
    work = directory.with_name(f".{package}.{os.getpid()}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    _unpack(package, work)
    shutil.rmtree(directory, ignore_errors=True)
    (work / "root").rename(directory)
    shutil.rmtree(work, ignore_errors=True)
    return binary


def _unpack(package: str, work: Path) -> None:
    # apt drops privileges for downloads, and its user could not write here.
    download = ("download", "-qq", "-o", "APT::Sandbox::User=root", package)
    try:
        apt(*download, cwd=work)
    except ClusterError:
        apt("update", "-qq")
        apt(*download, cwd=work)
    for archive in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(work / "root")], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m devcluster.packages", description="Install what the tests need.")
    parser.add_argument("--yes", action="store_true", help="install without a question")
    options = parser.parse_args(arguments)
    try:
        ensure([*RUN, *COMPILE, *CRIO, *COMPILE_CRIO, *TEST], agreed=options.yes)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
