"""What is known about this replica, and what follows from it. One loop looks and loads; requests only read."""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field

from ollama_agent import connections
from ollama_agent.catalog import Catalog, Model, bare
from ollama_agent.engines import Engines
from ollama_agent.ollama import ConnectionLostError, Ollama, OllamaError
from ollama_agent.problems import LOWER_IT, TRIED, Problem, Problems
from ollama_agent.residency import Residency
from ollama_agent.settings import AgentSettings

log = logging.getLogger("ollama_agent")
_LOOK_S = 0.5
_RESUME_S = 30.0
"""A server that still runs so long after its drain was not stopped: its container was restarted, or somebody else asked for the drain."""
_RETRY_S = (5.0, 60.0)
"""First and longest wait after a load that failed."""
_LOAD_S, _LOAD_BYTES_PER_S = 120.0, 25e6
"""What a load may take: so long, and a second for so many bytes. A load that hangs ends, and the others are loaded."""
_CLOSES_S = 2.0
"""What a process that ends may take to close its listening socket after its connections: the kernel does not close them together."""
_ENDS = 2
"""After so many ends of the server during its load a model is not loaded again by itself."""


@dataclass
class Proof:
    """A model that was loaded, and for how many tokens."""

    digest: str
    context_length: int


@dataclass
class Replica:
    """State of one server. `first_pass` ends when every model of the catalog was loaded, or failed to be, and one was loaded; only then is
    the replica ready. A model that fails holds back no other."""

    settings: AgentSettings
    catalog: Catalog
    available: dict[str, str] = field(default_factory=dict)
    memory: Residency = field(init=False)
    proofs: dict[str, Proof] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)
    load_s: dict[str, float] = field(default_factory=dict)
    """Model to what its last load took."""
    engines: Engines | None = None
    answers: bool = False
    first_pass: bool = True
    draining: bool = False
    _listener: int | None = None
    _said: str | None = ""
    """The reason that was logged last; None was `ready`."""
    _retry_at: dict[str, tuple[float, float]] = field(default_factory=dict)
    _ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Model and digest to how often the server ended while it was loaded."""

    def __post_init__(self) -> None:
        self.memory = Residency(gpu=self.settings.gpu)

    async def run(self, ollama: Ollama) -> None:
        loading: asyncio.Task[None] | None = None
        while True:
            try:
                alive = await self.look(ollama)
                if loading is not None and loading.done():
                    loading.result()
                    loading = None
                # Looking goes on while a model loads, which may take minutes.
                if alive and loading is None:
                    loading = asyncio.create_task(self.load_next(ollama))
            except OllamaError as error:
                if self.answers:
                    log.warning("ollama: %s", error)
                self.answers = False
            self._tell()
            self.problems.tell()
            await asyncio.sleep(self.settings.poll_s)

    async def look(self, ollama: Ollama) -> bool:
        """Read catalog and server. False when nobody listens. Raises OllamaError."""
        self.catalog.refresh()
        listener = connections.listener(self.settings.ollama_port)
        if listener != self._listener:
            # Another process, and nothing is loaded.
            self._listener, self.first_pass = listener, True
            self.proofs, self._retry_at = {}, {}
            self.memory.start_over()
        if listener is None:
            self.answers = False
            return False
        self.available = await ollama.available()
        loaded = await ollama.loaded()
        # A model that left the catalog is unloaded after that.
        self.catalog.refresh()
        self.memory.note(loaded, self.catalog.models)
        self.answers = True
        self._know_problems()
        if all(self.problems.is_tried(model.name) for model in self._unproven()) and (
            self.proofs or not (self.catalog.models or self.catalog.problems)
        ):
            self.first_pass = self.first_pass and not self.catalog.present
        return True

    def _know_problems(self) -> None:
        """Those that show without a load: of the delivery, and of models that lost their GPU. What has left the catalog is forgotten."""
        wanted = {model.name for model in self.catalog.models}
        for known in (self.proofs, self._retry_at, self.load_s):
            for name in known.keys() - wanted:
                del known[name]
        self.problems.keep(wanted | self.catalog.problems.keys())
        for name, line in self.catalog.problems.items():
            if self.problems.kind(name) not in TRIED:
                self.problems.put(name, Problem("delivery", line))
        for name in self.memory.off_for_long():
            self.problems.put(name, self.memory.off_gpu(name))
        for name in self.proofs:
            kind, delivered = self.problems.kind(name), name not in self.catalog.problems
            if (kind == "delivery" and delivered) or (kind == "gpu" and self.memory.off_gpu(name) is None):
                self.problems.put(name, None)

    def _tell(self) -> None:
        """Log whether requests may come, and why not, at every change: `make explain` repeats the last of these lines."""
        reason = self.unready_reason()
        if reason == self._said:
            return
        self._said = reason
        if reason is None:
            log.info("ready: %s", ", ".join(f"{name} ({proof.context_length} tokens)" for name, proof in self.proofs.items()))
        else:
            log.info("unready: %s", " ".join(reason.split()))

    def _unproven(self) -> list[Model]:
        """Models of the catalog that were not loaded yet in the version that the store has now."""
        return [model for model in self.catalog.models if (proof := self.proofs.get(model.name)) is None or not model.matches(proof.digest)]

    async def load_next(self, ollama: Ollama) -> None:
        """Load one model that never was. An evicted one is left alone: where memory lacks, two would push each other out for ever."""
        now, port = time.monotonic(), self.settings.ollama_port
        # What failed in an earlier life of the server comes last, so that it holds up nobody.
        for model in sorted(self._unproven(), key=lambda each: self.problems.line(each.name) is not None):
            if self.draining or self._retry_at.get(model.name, (0.0, 0.0))[0] > now or self._ends[model.name, model.digest] >= _ENDS:
                continue
            if connections.listener(port) != self._listener:
                return  # The last load ended the server: this model has no part in it.
            outcome = await self._load(ollama, model)
            if model not in self.catalog.models:
                return  # It left, or came anew, while it was loaded: nothing is known about it.
            if isinstance(outcome, Proof):
                self.proofs[model.name] = outcome
                self.problems.put(model.name, None)
                return
            if self.problems.line(model.name) != outcome.line:
                log.error("%s", outcome.line)
            self.problems.put(model.name, outcome)
            wait_s = min(max(self._retry_at.get(model.name, (0.0, 0.0))[1] * 2, _RETRY_S[0]), _RETRY_S[1])
            self._retry_at[model.name] = (time.monotonic() + wait_s, wait_s)

    async def _load(self, ollama: Ollama, model: Model) -> Proof | Problem:
        """Load and look at what the server allocated."""
        path, digest = f"models.{model.name}", self.available.get(model.name)
        if digest is None:
            return Problem("waiting", f"{path}: got no such model in the store, want it; wait for the writer, or look at its log")
        if not model.matches(digest):
            got = f"{path}: got digest {digest[:12]}, want {bare(model.digest)[:12]}"
            return Problem("waiting", f"{got}; wait for the writer, or look at its log")
        started, was_loaded, listener = time.monotonic(), model.name in self.memory.loaded, self._listener
        try:
            await ollama.load(model, min(self.settings.load_timeout_s, _LOAD_S + model.size / _LOAD_BYTES_PER_S))
            self.memory.note(await ollama.loaded(), self.catalog.models)
        except OllamaError as error:
            if not await self._has_ended(listener, error):
                return Problem("load", f"{path}: got {error}, want it loaded; look at the log of container ollama")
            self._ends[model.name, model.digest] += 1
            got = f"{path}: got the end of the server while it was loaded, {self._ends[model.name, model.digest]} times"
            return Problem("load", f"{got}, want it loaded; give the replica more memory, or remove the model")
        if not was_loaded:
            self.load_s[model.name] = time.monotonic() - started
        return self._short_of(model) or Proof(digest, self.memory.loaded[model.name].context_length)

    async def _has_ended(self, listener: int | None, error: OllamaError) -> bool:
        """Whether the server that was asked is gone."""
        deadline = time.monotonic() + (_CLOSES_S if isinstance(error, ConnectionLostError) else 0.0)
        while connections.listener(self.settings.ollama_port) == listener:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_LOOK_S / 10)
        return True

    def _short_of(self, model: Model) -> Problem | None:
        """What a model that was just loaded has not got."""
        path, found = f"models.{model.name}", self.memory.loaded.get(model.name)
        if found is None or not model.matches(found.digest):
            return Problem("load", f"{path}: got it unloaded at once, want it in memory; give the replica more memory, or it fewer models")
        if found.context_length < model.context_length:
            got = f"{path}: got effective context {found.context_length}, want {model.context_length}"
            return Problem("context", f"{got}; {LOWER_IT}")
        return self.memory.off_gpu(model.name)

    def withheld(self) -> dict[str, dict[str, str]]:
        """Models that ended the server so often that nobody may ask for them: the follower hides them, until they have another digest."""
        ended = {name: digest for (name, digest), count in self._ends.items() if count >= _ENDS}
        return {name: {"digest": bare(digest), "reason": self.problems.line(name) or ""} for name, digest in ended.items()}

    def hangs(self) -> str | None:
        return self.engines.problem() if self.engines is not None else None

    def unready_reason(self) -> str | None:
        """Why this replica must get no requests; None when it may."""
        if self.draining:
            return "draining"
        if (hangs := self.hangs()) or not self.answers:
            return hangs or "ollama does not answer"
        if not self.catalog.present:
            return f"no catalog at {self.settings.catalog} yet"
        off = [problem.line for problem in self.problems.all().values() if problem.kind == "gpu"]
        if off:
            return off[0]
        if self.first_pass:
            waiting = [self.problems.line(model.name) or f"models.{model.name}: loading" for model in self._unproven()]
            return waiting[0] if waiting else "looking"
        missing = sorted(name for name in self.proofs if name not in self.available)
        return f"models.{missing[0]}: got it gone from the store, want it; look at the writer's log" if missing else None

    async def drain(self) -> dict[str, float]:
        """Unready at once; returns when nobody from outside is connected any more, or the time is over."""
        settings, started = self.settings, time.monotonic()
        self.draining = True
        log.info("drain: no new requests, %d connections", connections.in_flight(settings.ollama_port))
        while True:
            left, waited_s = connections.in_flight(settings.ollama_port), time.monotonic() - started
            if (left == 0 and waited_s >= settings.notice_s) or waited_s >= settings.drain_s:
                break
            await asyncio.sleep(_LOOK_S)
        log.log(logging.WARNING if left else logging.INFO, "drain: %d connections left after %.1f s", left, waited_s)
        return {"waited_s": round(waited_s, 1), "left": left}

    async def resume(self) -> None:
        """After a drain that did not end in the pod's end."""
        await asyncio.sleep(_RESUME_S)
        self.draining = False
        log.warning("drain: the pod is still here, taking requests again")
