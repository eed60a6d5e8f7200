"""What the machine is like: everything that a cluster could change of it, to be compared before and after."""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from devcluster.cache import cache_root

_VOLATILE = (
    *("fs/dentry-state", "fs/inode-nr", "fs/inode-state", "fs/file-nr", "fs/aio-nr", "fs/quota/"),
    *("kernel/random/", "kernel/ns_last_pid", "kernel/pty/nr", "kernel/perf", "kernel/cad_pid"),
    *("net/netfilter/nf_conntrack_count", "net/ipv4/route/", "net/ipv6/route/", "net/ipv4/tcp_fastopen_key", "vm/stat"),
)
"""Beginnings of the names of kernel settings that count or are drawn by chance."""
_TREES = ("/run", "/var/lib", "/etc", "/opt", "/usr/local/lib/systemd")
_NOT_OURS = (
    # apt's own lists, and packages that were agreed to.
    *("/var/lib/apt", "/var/lib/dpkg", "/etc/ld.so.cache", "/etc/alternatives"),
    # Other services of the machine write here at any time.
    *("/run/udev", "/run/systemd", "/run/user", "/run/log", "/var/lib/systemd"),
    # mount(8) makes it at its first call on a machine, whoever calls.
    "/run/mount",
    # BuildKit's runc, of tests beside these; the nodes of a cluster have a /run of their own.
    "/run/runc",
)


_LOOPBACK = re.compile("(0{16}FFFF0000)?[0-9A-F]{6}7F|0{24}01000000")
"""127.0.0.0/8, alone or mapped into IPv6 (so gRPC listens), and ::1; the kernel writes each word in the machine's byte order."""
_OF_A_LINK = re.compile(r"/conf/(?!all/|default/)")
_NEIGHBOURS = ("buildkit", "modelfleet-fresh-root")
"""Beginnings of the names of control groups that other tests make and remove."""


def snapshot() -> dict[str, set[str]]:
    """Lines by subject: kernel settings, mounts, control groups, modules, network, listening sockets, files."""
    return {
        "kernel settings": set(_settings()),
        "mounts": set(_mounts()),
        "control groups": set(_groups()),
        "modules": _lines("/proc/modules", 1),
        "network": set(_network()),
        "listening": set(_listening()),
        "files": set(_files()),
    }


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, list[str]]:
    """What came (+) and what went (-), by subject; empty when nothing changed."""
    found = {
        subject: [f"- {line}" for line in sorted(before[subject] - after[subject])]
        + [f"+ {line}" for line in sorted(after[subject] - before[subject])]
        for subject in before
    }
    return {subject: lines for subject, lines in found.items() if lines}


def _lines(path: str, fields: int) -> set[str]:
    try:
        return {" ".join(line.split()[:fields]) for line in Path(path).read_text().splitlines()}
    except FileNotFoundError:
        return set()


def _settings() -> Iterator[str]:
    """Those of one link are left out: a link's own settings come and go with it, and links are looked at by name."""
    root = Path("/proc/sys")
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            inside = str(path.relative_to(root))
            if inside.startswith(_VOLATILE) or _OF_A_LINK.search(inside) or "/neigh/" in inside:
                continue
            try:
                yield f"{inside} = {path.read_bytes().decode(errors='replace').strip()}"
            except OSError:
                continue


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if not fields[4].startswith((f"{tempfile.gettempdir()}/", f"{cache_root()}/")):
            yield f"{fields[3]} on {fields[4]} ({' '.join(fields[fields.index('-') + 1 :])})"


def _groups() -> Iterator[str]:
    root = Path("/sys/fs/cgroup")
    for path in root.glob("*/*"):
        if path.is_dir() and not path.name.startswith(_NEIGHBOURS):
            yield str(path)
    for path in (root / "cgroup.subtree_control", *root.glob("*/cgroup.subtree_control")):
        if path.exists():
            yield f"{path}: {path.read_text().strip()}"


def _network() -> Iterator[str]:
    for link in json.loads(_said("ip", "-json", "address")):
        yield f"link {link['ifname']}: {sorted(each['local'] for each in link['addr_info'])}"
    for family in ("-4", "-6"):
        yield from (f"route {line.strip()}" for line in _said("ip", family, "route", "show", "table", "all").splitlines())
    yield from (f"namespace {line}" for line in _said("ip", "netns").splitlines())
    yield from (f"nft {line}" for line in _said("nft", "list", "ruleset").splitlines())
    yield from (f"ipset {line}" for line in _said("ipset", "list", "-name").splitlines())


def _said(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def _listening() -> Iterator[str]:
    """Sockets that other machines could reach; tests beside these open loopback ports all the time."""
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(path).read_text().splitlines()[1:] if Path(path).exists() else []:
            address, state = line.split()[1], line.split()[3]
            host = address.partition(":")[0]
            if state == "0A" and not _LOOPBACK.fullmatch(host):
                yield f"{Path(path).name} {address}"


def _files() -> Iterator[str]:
    """Below /etc with a digest of what they say: nobody is to find another word in a file that stays."""
    for tree in _TREES:
        for directory, folders, names in os.walk(tree):
            folders[:] = [each for each in folders if not f"{directory}/{each}".startswith(_NOT_OURS)]
            yield directory
            paths = (f"{directory}/{name}" for name in names if not f"{directory}/{name}".startswith(_NOT_OURS))
            yield from (f"{path} {_digest(Path(path))}" if tree == "/etc" else path for path in paths)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() and not path.is_symlink() else ""
    except OSError:
        return ""
