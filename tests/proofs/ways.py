"""README's commands, taken from its code blocks and run in a fresh root: what each way to an answer costs there.

The commands are those of README as it is, so a command that README gets wrong fails here. What is added to them, a node count and the
agreement to install packages, stands in `MAKE_UP`.
"""

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster import toolchain
from infra import ROOT
from tests import machine
from tests.proofs.empty_debian import StepError
from tests.proofs.fresh_root import CHECKOUT, Cost, FreshRoot, Watch, fresh_root
from tests.proofs.records import CODE_BLOCK

SUITES = {"bookworm": "12", "trixie": "13"}
"""Suite to Debian's release."""
MAKE_UP = "NODES=1 YES=1"
ANSWER = re.compile(r"^\S+: .*\bParis\b", re.MULTILINE)
"""The line in which a model answers the question that every way asks."""
MODPROBE = "modprobe: FATAL: Module br_netfilter not found in directory /lib/modules/"
"""What a container cannot do: it has no modules of the kernel. The machine must have loaded br_netfilter."""
WITH_UVX = "uvx --from dist/modelfleet-*.whl modelfleet try"
SILENCE_S = 15.0
"""Of `make up`, at most."""
SERVICES = ("api_server", "model_server", "model_sync", "metrics_exporter", "ollama_agent")
GUARDS_OF_TOOLS = (
    *("requirements-bootstrap.lock", "requirements.lock", "tools"),
    *(f"devcluster/{module}.py" for module in ("cache", "go", "packages", "pinned", "system_images", "toolchain")),
    *("tests/proofs/empty_debian.py", "tests/proofs/fresh_root.py", "tests/proofs/ways.py"),
)
"""What decides how the tools are built, and what that costs."""
GUARDS = (
    *GUARDS_OF_TOOLS,
    *("README.md", "Makefile", "Pulumi.yaml", "Pulumi.dev.yaml"),
    *("devcluster", "images", "infra/engine", "infra/lifecycle", "modelfleet", "*/requirements.lock"),
)
"""What decides what README's commands ask of a machine. What they deploy is the same on a machine that has everything: the suite sees it."""


def readme_command(pattern: str) -> str:
    """The one command in README's code blocks that matches a pattern, without its comment. Raises StepError."""
    blocks = CODE_BLOCK.findall((ROOT / "README.md").read_text())
    lines = {line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()}
    found = sorted(line for line in lines if re.fullmatch(pattern, line))
    if len(found) != 1:
        raise StepError(f"README.md: got {found} in its code blocks, want one command that matches {pattern!r}")
    return found[0]


def readme_packages() -> list[str]:
    return [word for word in readme_command("apt-get install .*").split()[2:] if not word.startswith("-")]


@contextmanager
def fresh_checkout(suite: str) -> Iterator[FreshRoot]:
    """A fresh root with the packages that README asks for; afterwards this machine must be what it was."""
    before = machine.snapshot()
    with fresh_root(suite, ",".join(readme_packages())) as root:
        yield root
    changed = machine.difference(before, machine.snapshot())
    # Modules that the kernel loads for links and firewalls: the root cannot unload them.
    changed.pop("modules", None)
    if changed:
        raise StepError(f"{suite}: got changes of this machine, want none: {changed}")


def try_it(root: FreshRoot, command: str) -> Cost:
    """`make try`, or another command for the same, to an answer, then Ctrl-C: it must end well and leave no process."""
    watch, said = Watch(root), []
    with root.popen(f"cd {CHECKOUT} && {command}") as process:
        timer = threading.Timer(600, process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                said.append(line)
                if ANSWER.match(line):
                    break
            else:
                raise StepError(f"{root.suite}: {command}: got no answer, want one; it said:\n{''.join(said)[-4000:]}\n{_logs(root)}")
            cost = watch.cost()
            # What Ctrl-C does at a terminal: every process of the foreground gets the signal.
            for pid in root.processes().keys() - {process.pid}:
                os.kill(pid, signal.SIGINT)
            said.extend(process.stdout or ())
        finally:
            timer.cancel()
    if left := root.processes():
        raise StepError(f"{root.suite}: {command}: got processes {left} after Ctrl-C, want none; it said:\n{''.join(said)[-2000:]}")
    return cost


def wheel(root: FreshRoot) -> str:
    """Build the wheel, and forget what `make try` fetched. The command that runs it, with the uvx that `make up` has brought."""
    root.run(f"cd {CHECKOUT} && make wheel && rm -rf ~/.cache/modelfleet/try ~/.cache/uv")
    return f".venv/bin/{WITH_UVX}"


def cache(root: FreshRoot) -> Path:
    """The root's cache, as this machine sees it."""
    return root.directory / "root/.cache/modelfleet"


def _logs(root: FreshRoot) -> str:
    """The ends of the services' logs, which go with the root."""
    logs = (cache(root) / "try").glob("run-*/*.log")
    return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-1000:]}" for path in sorted(logs))


def built_tools(root: FreshRoot) -> str:
    """Put the archive of this machine's tools into the root. The `make up` command that `make tools` prints for it."""
    done = subprocess.run(["make", "-s", "tools"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    command = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"make up TOOLS=(\S+)@sha256:[0-9a-f]{64}", command)
    if found is None:
        raise StepError(f"make tools: got {command!r}, want its last line to be make up TOOLS=FILE@sha256:HEX")
    target = root.directory / str(CHECKOUT / found[1]).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / found[1], target)
    return command


def without_what_c_compiles(root: FreshRoot) -> None:
    """Take Ollama, the pause process and every image layer out of the root's cache: what comes out of its own C compiler and packages."""
    ollama = toolchain.entry(toolchain.BY_NAME["ollama"]).name
    for path in (cache(root) / "tools" / ollama, cache(root) / "images", *(cache(root) / "tools").glob("bin-*")):
        shutil.rmtree(path)


def up_and_down(root: FreshRoot, command: str, timeout_s: float) -> tuple[Cost, Cost]:
    """`make up` to an answer through a cluster of one node, again, and down. What the first and the second one cost."""
    said, cold = root.run(f"cd {CHECKOUT} && {command} {MAKE_UP}", timeout_s)
    if cold.longest_silence_s > SILENCE_S:
        got = f"{cold.longest_silence_s:.0f} s of silence after {cold.silent_after.strip()!r}"
        raise StepError(f"{root.suite}: {command}: got {got}, want {SILENCE_S:.0f} s at most")
    if not ANSWER.search(said):
        raise StepError(f"{root.suite}: {command}: got no answer, want one; it said:\n{said[-4000:]}")
    refused = root.popen("modprobe br_netfilter").communicate()[0]
    if not refused.startswith(MODPROBE):
        raise StepError(f"{root.suite}: modprobe: got {refused!r}, want {MODPROBE!r}: a container that can load modules")
    _, warm = root.run(f"cd {CHECKOUT} && {command} {MAKE_UP}", 600)
    root.run(f"cd {CHECKOUT} && {readme_command('make down')}", 120)
    if left := root.processes():
        raise StepError(f"{root.suite}: make down: got processes {left}, want none")
    return cold, warm
