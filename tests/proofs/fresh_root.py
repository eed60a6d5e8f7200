"""An empty Debian in a directory, with its own mounts, processes, host name, IPC and control groups, as a new machine would be.

Of this machine it has the kernel, the network, and what the registries' clients are configured with: nothing of its packages,
caches, wheels, Python versions or Go. Everything of it, also what a killed run left, goes by its one mark: its control group.
Needs root and mmdebstrap.
"""

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from devcluster.toolchain import cache_root
from infra import ROOT
from tests.proofs.empty_debian import ENTER_GROUPS, HOME, PATH, StepError, bootstrap, give_client_configuration

CHECKOUT = HOME / "modelfleet"

_BOOT = """
set -eu
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=755 dev dev
for name in null zero full random urandom tty kmsg fuse; do [ ! -e /dev/$name ] || cp -a /dev/$name dev/$name; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
mount -t tmpfs shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts || mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
awk '$2 ~ "^/sys/fs/cgroup(/|$)" && $3 ~ "^cgroup2?$" {print $2, $3, $4}' /proc/mounts | while read -r where kind options; do
    mkdir -p ".$where"
    mount -t "$kind" -o "$options" "$kind" ".$where"
done
hostname fresh
pivot_root . .
umount -l .
# Whatever loses its parent comes here, and is reaped by the kernel: nobody waits for it.
trap '' CHLD
echo up
exec sleep infinity
"""


@dataclass(frozen=True)
class Cost:
    """What a step took. The download is that of the whole machine: proofs run beside nothing else."""

    wall_s: float
    cpu_min: float
    download_mb: float
    kept_mb: float
    """What the step left on the disk."""
    longest_silence_s: float = 0.0
    silent_after: str = ""
    """The line before it."""

    def as_figures(self) -> dict[str, float]:
        return {name: round(value, 1) for name, value in asdict(self).items() if isinstance(value, float)}


class _Listener(threading.Thread):
    """What a process says, and its longest silence."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        super().__init__(daemon=True)
        self._process = process
        self._said: list[str] = []
        self._last = time.monotonic()
        self.silence_s, self.silent_after = 0.0, ""

    @property
    def said(self) -> str:
        return "".join(self._said)

    def run(self) -> None:
        # Who interrupts the proof closes it.
        with suppress(ValueError):
            for line in self._process.stdout or ():
                self._passed()
                self._said.append(line)
        self._passed()

    def _passed(self) -> None:
        now = time.monotonic()
        if now - self._last > self.silence_s:
            self.silence_s, self.silent_after = now - self._last, self._said[-1] if self._said else ""
        self._last = now


@dataclass(frozen=True)
class FreshRoot:
    """One root, made and running. `boot` is the process that is number 1 in it."""

    suite: str
    directory: Path
    boot: int
    environment: Mapping[str, str]

    def popen(self, command: str) -> "subprocess.Popen[str]":
        """Start a shell command in the root's home directory, with stderr in stdout. The process is nsenter; its child is the shell."""
        enter = ["nsenter", f"--target={self.boot}", "--mount", "--pid", "--uts", "--ipc", "--cgroup"]
        words = [*enter, "env", "-i", *(f"{key}={value}" for key, value in self.environment.items()), "sh", "-c", f"cd; {command}"]
        return subprocess.Popen(
            ["sh", "-c", ENTER_GROUPS + f"exec {shlex.join(words)}"],
            env={"PATH": PATH, "GROUPS_OF_ROOT": " ".join(f"{group}/init" for group in groups(self.suite))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, timeout_s: float = 300.0) -> tuple[str, Cost]:
        """What a shell command said, and what it took. Raises StepError when it ends with an error or takes longer."""
        watch = Watch(self)
        with self.popen(command) as process:
            (heard := _Listener(process)).start()
            heard.join(timeout_s)
            if late := heard.is_alive():
                for pid in self.processes():
                    os.kill(pid, signal.SIGKILL)
                heard.join()
        if late:
            raise StepError(f"{self.suite}: {command}: got no end after {timeout_s:.0f} s, want one; it said:\n{heard.said[-4000:]}")
        if process.returncode:
            raise StepError(f"{self.suite}: {command}: got exit status {process.returncode}, want 0; it said:\n{heard.said[-4000:]}")
        return heard.said, replace(watch.cost(), longest_silence_s=heard.silence_s, silent_after=heard.silent_after)

    def processes(self) -> dict[int, str]:
        """Every process of the root but its first one: number on this machine, and command."""
        found: dict[int, str] = {}
        # In the outer group are the processes of this machine that hold the root.
        for pid in _pids(self.suite, "*/**/cgroup.procs") - {self.boot}:
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
        return found

    def cpu_s(self) -> float:
        """CPU time of everything that ever ran in the root."""
        for group in groups(self.suite):
            if (group / "cpuacct.usage").exists():
                return int((group / "cpuacct.usage").read_text()) / 1e9
            if (group / "cpu.stat").exists() and "usage_usec" in (stat := (group / "cpu.stat").read_text()):
                return int(dict(line.split() for line in stat.splitlines())["usage_usec"]) / 1e6
        raise StepError("/sys/fs/cgroup: got no account of CPU time, want one; mount the control group hierarchies")

    def disk_bytes(self) -> int:
        """Blocks that the root's files take; files with several names once."""
        seen: dict[int, int] = {}
        for directory, folders, files in os.walk(self.directory):
            for name in (*folders, *files):
                status = (Path(directory) / name).lstat()
                seen[status.st_ino] = status.st_blocks * 512
        return sum(seen.values())


class Watch:
    """Measures from when it is made."""

    def __init__(self, root: FreshRoot) -> None:
        self._root = root
        self._before = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        return time.monotonic(), self._root.cpu_s() / 60, _received_bytes() / 1e6, self._root.disk_bytes() / 1e6

    def cost(self) -> Cost:
        wall_s, cpu_min, download_mb, kept_mb = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return Cost(wall_s, cpu_min, download_mb, kept_mb)


def groups(suite: str) -> list[Path]:
    """The root's control group in every hierarchy. Its processes are one level below, as the unified hierarchy wants it."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    hierarchies = sorted({target for target, kind in mounts if kind in ("cgroup", "cgroup2") and target.startswith("/sys/fs/cgroup")})
    return [Path(hierarchy) / f"modelfleet-fresh-root-{suite}" for hierarchy in hierarchies]


def place(suite: str) -> Path:
    return cache_root() / "fresh-roots" / suite


def _scratch(suite: str) -> Path:
    """For mmdebstrap's temporary files, which a killed one leaves."""
    return place(suite).with_suffix(".tmp")


def _received_bytes() -> int:
    """Bytes that came in over the links that have a default route."""
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    links = {route[0] for route in routes if route[1] == "00000000"}
    return sum(int(Path("/sys/class/net", link, "statistics/rx_bytes").read_text()) for link in links)


@contextmanager
def fresh_root(suite: str, packages: str) -> Iterator[FreshRoot]:
    """An empty Debian `suite` with `packages` (comma-separated) and a clone of HEAD. One a suite at a time: the others wait."""
    directory = place(suite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.parent.chmod(0o700)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove(suite)
        try:
            for group in groups(suite):
                _make_group(group)
                _make_group(group / "init")
            bootstrap(suite, directory, packages, groups(suite), _scratch(suite))
            environment = give_client_configuration(directory)
            subprocess.run(["git", "clone", "-q", "--bare", "--no-hardlinks", ROOT, directory / "srv" / "modelfleet.git"], check=True)
            with _booted(suite, directory) as boot:
                root = FreshRoot(suite, directory, boot, environment)
                root.run(f"git clone -q /srv/modelfleet.git {CHECKOUT}")
                yield root
        finally:
            remove(suite)


@contextmanager
def _booted(suite: str, directory: Path) -> Iterator[int]:
    """The process that is number 1 in the root."""
    unshare = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
    # The namespace begins at the outer group, and its processes live in the inner one.
    boot = ENTER_GROUPS.replace("GROUPS_OF_ROOT", "INIT_GROUPS") + _BOOT
    outer = {"GROUPS_OF_ROOT": " ".join(map(str, groups(suite))), "INIT_GROUPS": " ".join(f"{group}/init" for group in groups(suite))}
    argv = ["sh", "-c", ENTER_GROUPS + f'exec {shlex.join([*unshare, "sh", "-c", boot, "boot"])} "$1"', "enter", str(directory)]
    with subprocess.Popen(argv, env={"PATH": PATH, **outer}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "up\n":
                process.kill()
                raise StepError(f"{suite}: got no root, want one; unshare said: {process.stderr.read() if process.stderr else ''}")
            [child] = _children(process.pid)
            yield child
        finally:
            process.kill()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _make_group(group: Path) -> None:
    group.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = group / name
        if file.exists() and not file.read_text().strip():
            file.write_text((group.parent / name).read_text())


def remove(suite: str) -> None:
    """End every process of the root and delete it. A root that is not there is fine."""
    deadline = time.monotonic() + 30
    while pids := _pids(suite):
        if time.monotonic() > deadline:
            raise StepError(f"{suite}: got processes {sorted(pids)} that do not end, want none; look at them with ps")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    for group in groups(suite):
        for path in sorted(group.rglob("*/"), reverse=True) if group.exists() else []:
            path.rmdir()
        if group.exists():
            group.rmdir()
    directory = place(suite)
    # Its mounts went with its processes. What is still mounted belongs to somebody, and must not be emptied.
    if mounted := [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if f"{directory}/" in line]:
        raise StepError(f"{directory}: got mounts {mounted}, want none; unmount them")
    for path in (directory, _scratch(suite)):
        if path.exists():
            shutil.rmtree(path)


def _pids(suite: str, pattern: str = "**/cgroup.procs") -> set[int]:
    found: set[int] = set()
    for group in groups(suite):
        for procs in group.glob(pattern):
            found.update(int(line) for line in procs.read_text().split())
    return found
