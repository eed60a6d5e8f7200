"""Small readers of the test cluster, over kubectl: the tool that users have, and the one that sees what they see."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Kube:
    kubectl: Path
    kubeconfig: Path

    def run(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        argv = [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def refused(self, *arguments: str, stdin: str | None = None) -> str:
        """What the API server said against it."""
        argv = [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=120)
        assert done.returncode, done.stdout
        return done.stderr

    def get(self, *arguments: str) -> Any:
        return json.loads(self.run("get", *arguments, "-o", "json"))

    def touch(self, namespace: str, component: str) -> None:
        """Have the kubelets bring changed files to these pods now, as `make key` does: else they look about once a minute."""
        pods = ("pods", "-n", namespace, "-l", f"app.kubernetes.io/name={component}")
        self.run("annotate", *pods, "--overwrite", f"tests/touched={time.time():.0f}")

    def exec(self, namespace: str, pod: str, *command: str) -> subprocess.CompletedProcess[str]:
        argv = [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", "exec", "-n", namespace, pod, "--", *command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60)


@contextmanager
def of_others(kube: Kube, *objects: dict[str, Any]) -> Iterator[None]:
    """Objects that somebody else has made, until the block ends."""
    for each in objects:
        kube.run("create", "-f", "-", stdin=json.dumps(each))
    try:
        yield
    finally:
        for each in reversed(objects):
            kube.run("delete", "--ignore-not-found", "-f", "-", stdin=json.dumps(each))


def eventually(read: Callable[[], T], holds: Callable[[T], bool], timeout_s: float, what: str) -> T:
    """Poll `read` until `holds`; fails with the last value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = read()
        if holds(value):
            return value
        assert time.monotonic() < deadline, f"{what}: still {value!r} after {timeout_s} s"
        time.sleep(0.5)


def descendants(pid: int) -> list[int]:
    """A process and all that it started, children first."""
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in children for found in descendants(child)] + [pid]
