"""What a pod of the fleet is made of, without Kubernetes: a real Ollama and the agent in a network namespace of their own.

Requests of clients go to an address that is not loopback, as in a pod, since that is how the agent tells them from its own.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from devcluster import toolchain
from tests.service.processes import ROOT

T = TypeVar("T")
ADDRESS = "198.18.255.1"
ADDRESS_V6 = "fd00:198:18::1"
"""Which a pod has too, once it was asked for."""
OLLAMA = f"http://{ADDRESS}:11434"
AGENT = f"http://{ADDRESS}:9465"
CONTROL = f"http://{ADDRESS}:9466"
_NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of linux/sched.h."""


@dataclass
class Pod:
    work: Path
    store: Path
    holder: "subprocess.Popen[str]"
    clients: ThreadPoolExecutor
    environment: Mapping[str, str]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def _start(self, name: str, argv: list[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with (self.work / f"{name}.log").open("ab") as log:
            inside = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *argv]
            process = subprocess.Popen(inside, cwd=ROOT, env={**self.environment, **env}, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def ollama(self, **env: str) -> "subprocess.Popen[bytes]":
        """Started, and answering `/`."""
        fixed = {"OLLAMA_HOST": "0.0.0.0:11434", "OLLAMA_MODELS": str(self.store), "OLLAMA_NOPRUNE": "1", "OLLAMA_NO_CLOUD": "1"}
        defaults = {"OLLAMA_CONTEXT_LENGTH": "4096", "OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_MAX_LOADED_MODELS": "3", "OLLAMA_NUM_PARALLEL": "2"}
        process = self._start("ollama", [str(self.work / "bin" / "ollama"), "serve"], {**fixed, **defaults, **env})
        self.until(lambda: self.status(f"{OLLAMA}/") == 200, "ollama answers")
        return process

    def agent(self, **env: str) -> "subprocess.Popen[bytes]":
        """Started, and answering /health."""
        fixed = {
            "CATALOG": str(self.work / "catalog.json"),
            "STORE": str(self.store),
            "REPLICA": "ollama-0",
            "POLL_S": "0.1",
            "NOTICE_S": "0.5",
        }
        settings = {f"OLLAMA_AGENT_{key}": value for key, value in {**fixed, **env}.items()}
        process = self._start("agent", [sys.executable, "-m", "ollama_agent"], settings)
        self.until(lambda: self.status(f"{CONTROL}/health") == 200, "the agent answers")
        return process

    def follower(self, shared: Path) -> "subprocess.Popen[bytes]":
        """Fills `store` from the shared one."""
        argv = [sys.executable, "-m", "model_sync", "follow", str(shared), str(self.store), "--ordinal=0", "--poll-s=0.2"]
        return self._start("follower", [*argv, f"--marker={self.work / 'marker'}"], {})

    def with_ipv6(self) -> None:
        """Give it the address of the other family."""
        inside = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]
        subprocess.run([*inside, "ip", "address", "add", f"{ADDRESS_V6}/128", "dev", "lo", "nodad"], check=True)

    def engine(self, before: str) -> None:
        """Let the engine run these lines of Python first; `sys.argv` has its flags."""
        path = self.work / "lib" / "ollama" / "llama-server"
        first, _, rest = path.read_text().partition("\n")
        path.write_text(f"{first}\nimport os, signal, sys, time\n{before}\n{rest}")

    def probe(self, **env: str) -> tuple[int, str]:
        """Exit status of the context probe, and its result."""
        result = self.work / "result"
        fixed = {"HOST": ADDRESS, "REPLICAS": "1", "MIN_CONTEXT": "1024", "TIMEOUT_S": "30", "POLL_S": "0.1", "RESULT": str(result)}
        settings = {f"OLLAMA_PROBE_{key}": value for key, value in {**fixed, **env}.items()}
        status = self._start("probe", [sys.executable, "-m", "ollama_agent", "probe"], settings).wait(60)
        return status, result.read_text()

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Run it in a thread that is in the pod's network."""
        return self.clients.submit(call)

    def get(self, url: str) -> httpx.Response:
        return self.submit(lambda: httpx.get(url, timeout=60, trust_env=False)).result()

    def post(self, url: str, **body: Any) -> httpx.Response:
        return self.submit(lambda: httpx.post(url, json=body, timeout=60, trust_env=False)).result()

    def status(self, url: str) -> int:
        try:
            return self.get(url).status_code
        except httpx.HTTPError:
            return 0

    def reason(self) -> str:
        """What /ready says."""
        return str(self.get(f"{CONTROL}/ready").json()["status"])

    def until(self, holds: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            logs = "\n".join(path.read_text()[-3000:] for path in self.work.glob("*.log"))
            assert time.monotonic() < deadline, f"{what}: not after {timeout_s} s\n{logs}"
            time.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.work / f"{name}.log").read_text()


def _enter(namespace: str) -> None:
    with Path(namespace).open() as file:
        assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())


def _kill_inside(holder: int) -> None:
    """What is left in the pod's network but the process that holds it: engines of a server that was killed outlive it."""
    namespace = Path(f"/proc/{holder}/ns/net").stat().st_ino
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "ns" / "net").stat().st_ino == namespace
        except OSError:
            continue
        if inside and int(process.name) != holder:
            os.kill(int(process.name), signal.SIGKILL)


@contextmanager
def pod(work: Path, store: Path) -> Iterator[Pod]:
    """Needs root, as the embedded cluster does. Everything in it is gone at the end."""
    (work / "bin").mkdir()
    (work / "lib" / "ollama").mkdir(parents=True)
    # Ollama looks for its engine beside where its own file really is.
    shutil.copy(toolchain.ensure(["ollama"]) / "ollama", work / "bin" / "ollama")
    engine = work / "lib" / "ollama" / "llama-server"
    engine.write_text(f"#!{sys.executable}\n" + (ROOT / "images" / "ollama" / "llama_server.py").read_text())
    engine.chmod(0o755)
    script = f"ip link set lo up && ip address add {ADDRESS}/32 dev lo && echo up && exec sleep 3600"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        environment = {"PATH": os.environ["PATH"], "HOME": str(work)}
        with ThreadPoolExecutor(8, initializer=_enter, initargs=(f"/proc/{holder.pid}/ns/net",)) as clients:
            made = Pod(work, store, holder, clients, environment)
            try:
                yield made
            finally:
                for process in made.processes:
                    # SIGTERM first: Ollama ends its engines itself.
                    process.terminate()
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
                _kill_inside(holder.pid)
                holder.kill()
