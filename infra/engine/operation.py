"""One operation of Pulumi through `pulumi.automation`.

What it does comes as events. It is never silent, and it ends when it waits in vain.
"""

import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pulumi.automation import CommandResult, LocalWorkspace, OnOutput, PulumiCommand, Stack
from pulumi.automation.errors import CommandError, create_command_error
from pulumi.automation.events import EngineEvent, OpType, StepEventMetadata

from infra.engine.binaries import OLDEST
from infra.engine.errors import CliError
from infra.engine.progress import Watched, with_signs_of_life

_DONE = {
    OpType.CREATE: ("+ ", "created"),
    OpType.CREATE_REPLACEMENT: ("+-", "replaced"),
    OpType.UPDATE: ("~ ", "updated"),
    OpType.DELETE: ("- ", "deleted"),
}
"""What a person is told when a step has ended, in Pulumi's own signs and words."""
_COLOR = re.compile(r"<\{%[^%]*%\}>")
_HOOK = re.compile(r'(?:\w+ failed: )?before hook "[^"]*" failed: ')
_SAYS_NOTHING = re.compile(r"(update|preview|destroy|resource \S+) failed|.* error occurred:?|[0-9]+ errors? occurred:?")
"""Headings of other errors."""
_BUILT = re.compile(r"#\d+ (?:[\d.]+ (?P<output>.*)|\[.*\] (?P<instruction>[A-Z]+ .*))")
"""What BuildKit tells of a step: its instruction, or after the seconds since it began what that printed."""
_LAST_LINES = 20


class Program(PulumiCommand):
    """The `pulumi` that runs, in an environment that holds nothing but what is given. It can be interrupted."""

    def __init__(self, command: str, environment: Mapping[str, str]) -> None:
        # The base class would look for a program and its version; `binaries` has found both.
        self.command, self.version = command, None
        self.errors = ""
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: OnOutput | None = None,
        on_error: OnOutput | None = None,
    ) -> CommandResult:
        """Raises CommandError of pulumi.automation. What a command prints comes with its end."""
        del on_output, on_error
        with subprocess.Popen(
            [self.command, *args, "--non-interactive", "--color", "never"],
            cwd=cwd,
            env={**self._environment, **additional_env},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as self._process:
            output, self.errors = self._process.communicate()
        result = CommandResult(stdout=output, stderr=self.errors, code=self._process.returncode)
        if result.code:
            raise create_command_error(result)
        return result

    def interrupt(self) -> None:
        """Pulumi ends what it has begun, and writes the state."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)


class Workspace(LocalWorkspace):
    """Where the program is. Nothing of it changes: the library would select the stack for the user, and read its secrets for nobody."""

    @property
    def pulumi_version(self) -> str:
        """That of the oldest `pulumi` which `binaries` lets through; the library wants to know how events can come."""
        return ".".join(map(str, OLDEST))

    def select_stack(self, stack_name: str) -> None:
        """Each command names its stack."""

    def stack_outputs(self, stack_name: str) -> dict[str, Any]:
        """Read by those who want them, masked."""
        return {}


def select(name: str, directory: Path, program: Program) -> Stack:
    """A stack of the project in the directory."""
    return Stack.select(name, Workspace(work_dir=str(directory), pulumi_command=program))


@dataclass
class Told:
    """What the events of an operation said."""

    steps: list[StepEventMetadata] = field(default_factory=list)
    """Every step that was begun, or would be."""
    errors: list[tuple[str, str]] = field(default_factory=list)
    """(URN or nothing, message)"""
    violations: list[str] = field(default_factory=list)
    """Of policies, also of those that are only advice."""
    packs: Mapping[str, str] = field(default_factory=dict)
    """Name of each policy pack that ran, to its version."""
    printed: list[tuple[str, str]] = field(default_factory=list)
    """(URN or nothing, what the program wrote to its standard error)"""
    built: dict[str, deque[str]] = field(default_factory=dict)
    """URN of an image to the last lines of its build."""
    failure: str = ""
    """What Pulumi itself said when it failed."""

    def hear(self, event: EngineEvent) -> None:
        """Keep what an event says."""
        if event.resource_pre_event:
            self.steps.append(event.resource_pre_event.metadata)
        elif event.diagnostic_event and event.diagnostic_event.severity in ("error", "info#err"):
            said = event.diagnostic_event
            message = _HOOK.sub("", _COLOR.sub("", said.message).strip().removeprefix("error: "))
            if message:
                (self.errors if said.severity == "error" else self.printed).append((said.urn or "", message))
        elif event.diagnostic_event and event.diagnostic_event.urn and (line := _BUILT.fullmatch(event.diagnostic_event.message.strip())):
            said = line["output"] if line["instruction"] is None else f"> {line['instruction']}"
            self.built.setdefault(event.diagnostic_event.urn, deque(maxlen=_LAST_LINES)).append(said)
        elif event.policy_event:
            found = event.policy_event
            message = _COLOR.sub("", found.message).strip()
            self.violations.append(f"[{found.enforcement_level}] {found.policy_name}: {message}")
        elif event.summary_event:
            packs = event.summary_event.policy_packs
            # A pack of a directory comes as name|local|directory.
            self.packs = {name.partition("|")[0]: version for name, version in packs.items()}

    @property
    def reason(self) -> str:
        """Why the operation failed, for a person."""
        telling = [(urn, message) for urn, message in self.errors if not _SAYS_NOTHING.fullmatch(message)]
        found = [*self.violations, *map(_named, telling or self.printed)]
        for lines in (self.built[urn] for urn in dict.fromkeys(urn for urn, _ in telling) if urn in self.built):
            found.append("\n  ".join(["the build ended with:", *lines]))
        return "\n".join(dict.fromkeys(found)) or "\n".join(message for _, message in self.errors) or self.failure


def _named(found: tuple[str, str]) -> str:
    """A message below the heading of its resource. What the program itself says needs none."""
    urn, message = found
    kind, _, name = urn.partition("::")[2].partition("::")[2].rpartition("::")
    return message if kind in ("", "pulumi:pulumi:Stack") else f"{kind.rpartition('$')[2]} ({name}): {message}"


def operate(
    name: str, program: Program, action: Callable[[Callable[[EngineEvent], None]], object], watch: Callable[[], Watched] | None
) -> Told:
    """Run an operation, which gets what it is to call for each event.

    With `watch`, each step that has ended is told on stderr, and `watch` is asked when none has for a while. Raises CliError with a cause
    that `watch` calls hopeless; any other failure is in what is returned.
    """
    told, lines, doomed = Told(), _Lines(), ""
    events: SimpleQueue[EngineEvent | None] = SimpleQueue()

    def act() -> None:
        try:
            action(events.put)
        except CommandError:
            told.failure = error_text(program.errors) or f"pulumi {name}: got a failure without a reason, want success; run it again"
        finally:
            events.put(None)

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(act)
        for event, line in with_signs_of_life(events, lines.of):
            if event is not None:
                told.hear(event)
            if watch and line:
                print(f"pulumi: {line}", file=sys.stderr, flush=True)
            elif watch and event is None:
                said = watch() if not doomed else Watched()
                for each in said.lines or [f"pulumi: {name} goes on"]:
                    print(each, file=sys.stderr, flush=True)
                if said.hopeless:
                    doomed = said.hopeless
                    program.interrupt()
    if doomed:
        raise CliError(doomed)
    ended.result()
    return told


class _Lines:
    """What a person is told of the events: each object when it is done, with the time that it took."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}

    def of(self, event: EngineEvent) -> str:
        """The line of an event; nothing of most."""
        if event.resource_pre_event:
            self._begun[event.resource_pre_event.metadata.urn] = time.monotonic()
        ended = event.res_outputs_event
        if ended is None or ended.planning or ended.metadata.op not in _DONE:
            return ""
        step = ended.metadata
        state = step.new or step.old
        if state is None or not state.custom:
            return ""
        took_s = time.monotonic() - self._begun.get(step.urn, time.monotonic())
        sign, verb = _DONE[step.op]
        return f"{sign} {step.type} {step.urn.rpartition('::')[2]} {verb} ({took_s:.0f}s)"


def error_text(errors: str) -> str:
    """What a command said on its standard error, without the word `error`."""
    return "\n".join(line.removeprefix("error: ") for line in errors.splitlines() if line.strip())[-4000:]
