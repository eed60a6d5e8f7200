"""Our services as real processes on loopback, on ports that nobody else has."""

import fcntl
import functools
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

ROOT = Path(__file__).resolve().parents[2]
_given: set[int] = set()
"""Ports that this process was given."""


def free_port() -> int:
    """One that nothing listens on, that the kernel gives to no outgoing connection, and this function to nobody else while this process
    lives: a test may need a while until its server listens. Raises OSError when the file of locks cannot be opened."""
    locks = _locks()
    while True:
        port = random.randrange(20000, 32768)  # noqa: S311
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                # A lock of a process is none against itself.
                fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
                _given.add(port)
                return port


@functools.cache
def _locks() -> IO[bytes]:
    """A file that all tests of a user share: each process locks the byte of each port that it was given. Opened once, since a process that
    closes any of its descriptors of a file loses its locks there."""
    return (Path(tempfile.gettempdir()) / f"modelfleet-test-ports-{os.getuid()}").open("ab")


@contextmanager
def talking_nonsense(port: int) -> Iterator[None]:
    """Another program listens at a port of loopback, where something else is looked for, until the block ends."""
    replies = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*-5\r\n", b"$99999999999\r\n", b"+OK\r\n" * 50, b"\x00" * 1000, b""]

    def talk(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(1)
                connection.recv(4096)
                connection.sendall(replies[0])
            replies.append(replies.pop(0))

    with socket.create_server(("127.0.0.1", port)) as listener:
        talks = threading.Thread(target=talk, args=(listener,))
        talks.start()
        try:
            yield
        finally:
            # Closed alone, it would listen on for as long as its thread waits for a client.
            listener.shutdown(socket.SHUT_RDWR)
            talks.join()


@dataclass
class Service:
    process: "subprocess.Popen[bytes]"
    url: str
    log: Path
    verify: ssl.SSLContext | bool = True
    """What a client of ours trusts."""
    metrics_url: str = ""
    """Where its metrics are, if they have a port of their own."""

    def wait_for(self, path: str, status: int = 200, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if httpx.get(self.url + path, timeout=5, trust_env=False, verify=self.verify).status_code == status:
                    return
            except httpx.HTTPError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{path}: no {status}; {self.log.read_text()}"
            time.sleep(0.05)

    def ended(self, timeout_s: float = 30) -> int:
        return self.process.wait(timeout_s)


@contextmanager
def running(
    module: str,
    port: int,
    env: Mapping[str, str],
    log: Path,
    ready: str = "/ready",
    at: str = "127.0.0.1",
    files: int = 0,
    ca: Path | None = None,
    group: Path | str = "",
) -> Iterator[Service]:
    """`python -m module` until the block ends; it must answer on `ready`, at an address, first (empty: do not wait). `files`: how many it
    may open; 0, as many as this process. `ca`: it has TLS, with a certificate of this authority. `group`: the control group that it starts
    in; empty, that of this process."""
    argv = [sys.executable, "-m", module]
    if group:
        argv = ["sh", "-c", f'echo $$ >"{group}/cgroup.procs" && exec "$@"', "sh", *argv]
    if files:
        argv = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *argv]
    environment = {"PATH": os.environ["PATH"], "HOME": str(log.parent), **env}
    with (
        log.open("ab") as handle,
        subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=handle, stderr=handle) as process,
    ):
        verify = ssl.create_default_context(cafile=ca) if ca is not None else True
        service = Service(process, f"http{'s' if ca is not None else ''}://{at}:{port}", log, verify)
        try:
            if ready:
                service.wait_for(ready)
            yield service
        finally:
            if process.poll() is None:
                process.kill()


def refused(module: str, env: Mapping[str, str]) -> tuple[int, str]:
    """Exit status and standard error of a service that must not start."""
    environment = {"PATH": os.environ["PATH"], **env}
    done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stderr
