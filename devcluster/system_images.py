"""The images that the cluster itself needs, and the Debian layer that every image of ours stands on."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from devcluster import addons, node, packages, toolchain
from devcluster.layout import ClusterError
from devcluster.oci import EPOCH, Image, Layer, RuntimeConfig, assemble, cached_layer, write_tree
from devcluster.toolchain import cache_root

BASE_PACKAGES = ("python3", "libgomp1", "libstdc++6", "ca-certificates")
"""Debian 12: Python 3.11."""
PYTHON = "3.11"
SUITE = "bookworm"
KEYRING = Path(__file__).with_name("debian-archive-keyring.gpg")
"""Keys of Debian 12's archive, from its package debian-archive-keyring: whatever the machine trusts does not matter."""
_OPTIONS = (
    "--variant=essential",
    f"--include={','.join(BASE_PACKAGES)}",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    '--aptopt=Apt::Install-Recommends "false"',
    "--customize-hook=ln -s python3 $1/usr/bin/python",
    # It names the machine's mirror, and the layer has no apt to read it.
    "--customize-hook=rm $1/etc/apt/sources.list",
)
_PROMETHEUS_FILES = ("usr/bin/prometheus", "usr/share/doc/prometheus/copyright", "usr/share/doc/prometheus/NOTICE")
_PAUSE_SOURCE = """\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0) {} }

int main(void) {
    signal(SIGINT, leave);
    signal(SIGTERM, leave);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
"""
IMAGES_CACHE = "images"


def images_cache() -> Path:
    return cache_root() / IMAGES_CACHE


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def base_layer_name() -> str:
    keys = hashlib.sha256(KEYRING.read_bytes()).hexdigest()
    return f"base-{_key(SUITE, keys, *_OPTIONS)}.tar"


def base_layer() -> Layer:
    """Debian's essential packages with Python. About 4 minutes, once.

    Suite, components and keys are ours; of the machine comes the address of its Debian mirror alone.
    """
    return cached_layer(images_cache() / base_layer_name(), _mmdebstrap)


def sources() -> list[str]:
    """apt's lines for `SUITE`, its updates and its security updates. Raises ClusterError without a mirror of Debian."""
    mirrors = _mirrors() or _after_update()
    main = next((uri for uri, label in mirrors if label == "Debian"), None)
    security = next((uri for uri, label in mirrors if label == "Debian-Security"), None)
    if main is None or security is None:
        raise ClusterError(
            "apt sources: got none of Debian and Debian-Security with component main, want both for the images' base layer; "
            "add them to /etc/apt/sources.list.d and run apt-get update"
        )
    places = ((main, SUITE), (main, f"{SUITE}-updates"), (security, f"{SUITE}-security"))
    return [f"deb {uri} {suite} main" for uri, suite in places]


@contextmanager
def _keys() -> Iterator[Path]:
    """A copy of KEYRING for apt: it reads keys as a user of its own, who may look neither into the checkout nor below TMPDIR where these
    are private."""
    with TemporaryDirectory(prefix="modelfleet-keys-", dir="/tmp") as keys:
        Path(keys).chmod(0o755)
        copy = Path(keys) / KEYRING.name
        copy.write_bytes(KEYRING.read_bytes())
        copy.chmod(0o644)
        yield copy


@contextmanager
def mmdebstrap(target: Path, *more: str) -> Iterator[list[str]]:
    """The command that writes the base layer to `target`, with further options. Raises ClusterError without a mirror of Debian."""
    with _keys() as copy:
        # Both, or apt would also trust what the machine trusts.
        trusted = [f"--keyring={copy}", f"--keyring={copy.parent}"]
        yield ["mmdebstrap", "--format=tar", *more, *trusted, *_OPTIONS, SUITE, str(target), *sources()]


def _after_update() -> list[tuple[str, str]]:
    # Who publishes a source stands in its index, which a new machine has not fetched yet.
    packages.apt("update", "-qq")
    return _mirrors()


def _mirrors() -> list[tuple[str, str]]:
    """(address, label) of the machine's sources that Debian publishes."""
    form = "$(ORIGIN)\t$(LABEL)\t$(COMPONENT)\t$(REPO_URI)"
    done = subprocess.run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], capture_output=True, text=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [(row[3], row[1]) for row in rows if len(row) == 4 and row[0] == "Debian" and row[2] == "main"]


def _mmdebstrap(target: Path) -> None:
    started = time.monotonic()
    print("images: making the Debian base layer (mmdebstrap): about 4 min, once", file=sys.stderr, flush=True)
    log = target.with_suffix(".log")
    with log.open("w") as handle, mmdebstrap(target) as command:
        done = subprocess.run(
            command,
            env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)},
            stdout=handle,
            stderr=handle,
        )
    if done.returncode:
        raise ClusterError(f"mmdebstrap: got exit status {done.returncode}, want a base layer; its log ends:\n{log.read_text()[-1500:]}")
    log.unlink()
    print(f"images: base layer made in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def prometheus_layer_name() -> str:
    keys = hashlib.sha256(KEYRING.read_bytes()).hexdigest()
    return f"prometheus-{_key(SUITE, keys, *_PROMETHEUS_FILES)}.tar"


def prometheus_layer() -> Layer:
    """Debian's Prometheus by itself, over the base layer: its package's other files are a web page's and a service's. About 3 s, once."""

    def make(target: Path) -> None:
        with TemporaryDirectory(prefix="modelfleet-apt-", dir="/tmp") as work:
            root = _unpacked_from_suite("prometheus", Path(work))
            write_tree(target, [(name, root / name) for name in _PROMETHEUS_FILES])

    return cached_layer(images_cache() / prometheus_layer_name(), make)


def _unpacked_from_suite(package: str, work: Path) -> Path:
    """The files of a package of SUITE, whatever the machine's own suite is. Raises ClusterError."""
    for directory in ("etc/apt/preferences.d", "lists/partial", "archives/partial"):
        (work / directory).mkdir(parents=True)
    (work / "status").touch()
    options = {"Dir::Etc": work / "etc/apt", "Dir::State": work, "Dir::State::status": work / "status", "Dir::Cache": work}
    # apt drops privileges for downloads, and its user could not write here.
    apt = [f"-o{name}={value}" for name, value in {**options, "APT::Sandbox::User": "root", "APT::Architecture": "amd64"}.items()]
    with _keys() as copy:
        signed = [line.replace("deb ", f"deb [signed-by={copy}] ", 1) for line in sources()]
        (work / "etc/apt/sources.list").write_text("\n".join(signed) + "\n")
        packages.apt(*apt, "-qq", "update")
        packages.apt(*apt, "-qq", "download", package, cwd=work)
    for archive in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(work / "root")], check=True)
    return work / "root"


def pause_layer_name() -> str:
    return f"pause-{_key(_PAUSE_SOURCE)}.tar"


def pause() -> Image:
    def make(target: Path) -> None:
        source, binary = target.with_suffix(".c"), target.with_suffix(".bin")
        source.write_text(_PAUSE_SOURCE)
        done = subprocess.run(["gcc", "-Os", "-static", "-s", "-o", str(binary), str(source)], capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"gcc: got {done.stderr.strip()[-500:]!r}, want the image pause; install gcc and libc6-dev")
        write_tree(target, [("pause", binary)])
        source.unlink()
        binary.unlink()

    layer = cached_layer(images_cache() / pause_layer_name(), make)
    return assemble(node.PAUSE_IMAGE, [layer], RuntimeConfig(entrypoint=["/pause"], user="65535:65535"))


def coredns(binaries: Path) -> Image:
    binary = binaries / "coredns"
    path = images_cache() / f"coredns-{toolchain.key(toolchain.BY_NAME['coredns'])}.tar"
    layer = cached_layer(path, lambda target: write_tree(target, [("coredns", binary)]))
    return assemble(addons.COREDNS_IMAGE, [layer], RuntimeConfig(entrypoint=["/coredns"]))


def helper() -> Image:
    """A shell for the volume provisioner's helper pods and for tests that try connections."""
    return assemble(addons.HELPER_IMAGE, [base_layer()], RuntimeConfig(cmd=["/bin/sh"], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}))
