"""Debian's Docker daemon, unpacked and not installed: it has its own directories and control groups, no bridge, and no firewall rules."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster import node, packages
from tests.service.buildkit import remove_groups

_OF_THE_MACHINE = [Path(path) for path in ("/etc/docker", "/etc/docker/key.json", "/run/docker", "/run/docker/plugins")]
"""What the daemon makes in any case, and no option moves."""


@dataclass(frozen=True)
class Docker:
    """A client of the daemon."""

    program: Path
    env: Mapping[str, str]

    def run(self, *arguments: str) -> str:
        done = subprocess.run([self.program, *arguments], env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"docker {arguments[0]}: {done.stderr[-3000:]}"
        return done.stdout


@contextmanager
def docker(mirror: str) -> Iterator[Docker]:
    """A daemon until the block ends. What is on Docker Hub it finds at `mirror`, host and port of a registry on loopback."""
    new = [path for path in _OF_THE_MACHINE if not path.exists()]
    group = f"modelfleet-docker-{os.getpid()}"
    # Paths of sockets are short, and its data would be gigabytes that pytest keeps for a while.
    with tempfile.TemporaryDirectory(prefix="modelfleet-docker-") as directory:
        try:
            with _running(Path(directory), group, mirror) as client:
                yield client
        finally:
            # The daemon may leave the network namespace of its builds behind.
            node.remove_mounts(Path(directory))
            for path in [path for path in reversed(new) if path.exists()]:
                path.rmdir() if path.is_dir() else path.unlink()
            remove_groups(group)


@contextmanager
def _running(work: Path, group: str, mirror: str) -> Iterator[Docker]:
    program, containerd = packages._unpacked("docker.io", "docker"), packages._unpacked("containerd", "containerd")
    socket, log = work / "socket", work / "log"
    (work / "daemon.json").write_text(json.dumps({"registry-mirrors": [f"http://{mirror}"]}))
    environment = {
        "PATH": f"{containerd.parent}:{program.parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(work),
        "DOCKER_HOST": f"unix://{socket}",
        # What pulumi-docker asks the daemon for.
        "DOCKER_BUILDKIT": "1",
    }
    argv = [program.parents[1] / "sbin" / "dockerd", "--config-file", work / "daemon.json", "--host", f"unix://{socket}"]
    argv += ["--data-root", work / "data", "--exec-root", work / "exec", "--pidfile", work / "pid", "--cgroup-parent", group]
    argv += ["--bridge=none", "--userland-proxy=false", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    with log.open("wb") as output, subprocess.Popen(argv, env=environment, stdout=output, stderr=output) as daemon:
        try:
            _wait(daemon, socket, log)
            yield Docker(program, environment)
        finally:
            daemon.terminate()
            daemon.wait(60)


def _wait(daemon: "subprocess.Popen[bytes]", socket: Path, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not (socket.exists() and "API listen on" in log.read_text()):
        assert daemon.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)
