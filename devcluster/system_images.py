"""The images that the cluster itself needs, and the Debian layer that every image of ours stands on."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from devcluster import addons, node, toolchain
from devcluster.layout import ClusterError
from devcluster.oci import EPOCH, Image, Layer, RuntimeConfig, assemble, cached_layer, write_tree
from devcluster.toolchain import cache_root

BASE_PACKAGES = ("python3", "redis-server", "libgomp1", "libstdc++6", "ca-certificates")
"""Debian 12: Python 3.11, Redis 7.0 (the last free line before the licence change; Debian 12 has no Valkey)."""
PYTHON = "3.11"
_OPTIONS = (
    "--variant=essential",
    f"--include={','.join(BASE_PACKAGES)}",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    '--aptopt=Apt::Install-Recommends "false"',
    "--customize-hook=ln -s python3 $1/usr/bin/python",
)
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


def base_layer() -> Layer:
    """Debian's essential packages with Python and Redis, from the mirrors this machine is configured for. About 4 minutes, once."""
    return cached_layer(images_cache() / f"base-{_key('bookworm', *_OPTIONS)}.tar", _mmdebstrap)


def _mmdebstrap(target: Path) -> None:
    started = time.monotonic()
    print("images: making the Debian base layer (mmdebstrap): about 4 min, once", file=sys.stderr, flush=True)
    sources = [str(path) for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))] or ["/etc/apt/sources.list"]
    log = target.with_suffix(".log")
    with log.open("w") as handle:
        done = subprocess.run(
            ["mmdebstrap", "--format=tar", *_OPTIONS, "bookworm", str(target), *sources],
            env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)},
            stdout=handle,
            stderr=handle,
        )
    if done.returncode:
        raise ClusterError(f"mmdebstrap: got exit status {done.returncode}, want a base layer; its log ends:\n{log.read_text()[-1500:]}")
    log.unlink()
    print(f"images: base layer made in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def pause() -> Image:
    def make(target: Path) -> None:
        source, binary = target.with_suffix(".c"), target.with_suffix(".bin")
        source.write_text(_PAUSE_SOURCE)
        subprocess.run(["gcc", "-Os", "-static", "-s", "-o", str(binary), str(source)], check=True)
        write_tree(target, [("pause", binary)])
        source.unlink()
        binary.unlink()

    layer = cached_layer(images_cache() / f"pause-{_key(_PAUSE_SOURCE)}.tar", make)
    return assemble(node.PAUSE_IMAGE.partition(":")[0], [layer], RuntimeConfig(entrypoint=["/pause"], user="65535:65535"))


def coredns(binaries: Path) -> Image:
    binary = binaries / "coredns"
    path = images_cache() / f"coredns-{toolchain.key(toolchain.BY_NAME['coredns'])}.tar"
    layer = cached_layer(path, lambda target: write_tree(target, [("coredns", binary)]))
    return assemble(addons.COREDNS_IMAGE, [layer], RuntimeConfig(entrypoint=["/coredns"]))


def helper() -> Image:
    """A shell for the volume provisioner's helper pods and for tests that try connections."""
    return assemble(addons.HELPER_IMAGE, [base_layer()], RuntimeConfig(cmd=["/bin/sh"], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}))
