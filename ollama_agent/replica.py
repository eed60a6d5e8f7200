"""What is known about this replica, and what follows from it. One loop looks and loads; requests only read."""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ollama_agent import connections
from ollama_agent.catalog import Catalog, Model, bare
from ollama_agent.ollama import Loaded, Ollama, OllamaError
from ollama_agent.settings import AgentSettings

log = logging.getLogger("ollama_agent")
_LOOK_S = 0.5
_RESUME_S = 30.0
"""A server that still runs so long after its drain was not stopped: its container was restarted, or somebody else asked for the drain."""
_RETRY_S = (5.0, 60.0)
"""First and longest wait after a load that failed."""


@dataclass
class Proof:
    """A model that was loaded, and for how many tokens."""

    digest: str
    context_length: int


@dataclass
class Replica:
    """State of one server. `first_pass` ends when every model of the catalog was loaded once; only then is the replica ready."""

    settings: AgentSettings
    catalog: Catalog
    available: dict[str, str] = field(default_factory=dict)
    loaded: dict[str, Loaded] = field(default_factory=dict)
    proofs: dict[str, Proof] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """Model to why it cannot answer."""
    evictions: Counter[str] = field(default_factory=Counter)
    load_s: dict[str, float] = field(default_factory=dict)
    """Model to what its last load took."""
    answers: bool = False
    first_pass: bool = True
    draining: bool = False
    _listener: int | None = None
    _said: str | None = ""
    """The reason that was logged last; None was `ready`."""
    _retry_at: dict[str, tuple[float, float]] = field(default_factory=dict)

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
            await asyncio.sleep(self.settings.poll_s)

    async def look(self, ollama: Ollama) -> bool:
        """Read catalog and server. False when nobody listens. Raises OllamaError."""
        self.catalog.refresh()
        listener = connections.listener(self.settings.ollama_port)
        if listener != self._listener:
            # Another process: nothing is loaded, and nothing was evicted.
            self._listener, self.first_pass = listener, True
            self.loaded, self.proofs, self._retry_at = {}, {}, {}
        if listener is None:
            self.answers = False
            return False
        self.available = await ollama.available()
        self._note(await ollama.loaded())
        self.answers = True
        wanted = {model.name for model in self.catalog.models}
        for known in (self.proofs, self.problems, self._retry_at, self.load_s):
            for name in known.keys() - wanted:
                del known[name]
        if self.first_pass and self.catalog.present and not self._unproven():
            self.first_pass = False
        return True

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

    def _note(self, loaded: dict[str, Loaded]) -> None:
        for name, before in self.loaded.items():
            if name not in loaded and not before.expired:
                self.evictions[name] += 1
                log.warning("%s: evicted before its keep-alive ended", name)
        self.loaded = loaded

    def _unproven(self) -> list[Model]:
        """Models of the catalog that were not loaded yet in the version that the store has now."""
        return [model for model in self.catalog.models if (proof := self.proofs.get(model.name)) is None or not model.matches(proof.digest)]

    async def load_next(self, ollama: Ollama) -> None:
        """Load one model that never was. An evicted one is left alone: where memory lacks, two would push each other out for ever."""
        now = time.monotonic()
        for model in self._unproven():
            if self.draining or self._retry_at.get(model.name, (0.0, 0.0))[0] > now:
                continue
            problem = await self._load(ollama, model)
            if problem is None:
                self.problems.pop(model.name, None)
                return
            if self.problems.get(model.name) != problem:
                log.error("%s", problem)
            self.problems[model.name] = problem
            wait_s = min(max(self._retry_at.get(model.name, (0.0, 0.0))[1] * 2, _RETRY_S[0]), _RETRY_S[1])
            self._retry_at[model.name] = (time.monotonic() + wait_s, wait_s)

    async def _load(self, ollama: Ollama, model: Model) -> str | None:
        """Load and look at what the server allocated. Returns what is wrong."""
        path = f"models.{model.name}"
        digest = self.available.get(model.name)
        if digest is None:
            return f"{path}: got no such model in the store, want it; wait for the writer, or look at its log"
        if not model.matches(digest):
            return f"{path}: got digest {digest[:12]}, want {bare(model.digest)[:12]}; wait for the writer, or look at its log"
        started, was_loaded = time.monotonic(), model.name in self.loaded
        try:
            await ollama.load(model, self.settings.load_timeout_s)
            self._note(await ollama.loaded())
        except OllamaError as error:
            return f"{path}: got {error}, want it loaded; look at the log of container ollama"
        if not was_loaded:
            self.load_s[model.name] = time.monotonic() - started
        found = self.loaded.get(model.name)
        if found is None or not model.matches(found.digest):
            return f"{path}: got it unloaded at once, want it in memory; give the replica more memory, or it fewer models"
        self.proofs[model.name] = Proof(digest, found.context_length)
        if found.context_length < model.context_length:
            del self.proofs[model.name]
            return f"{path}: got effective context {found.context_length}, want {model.context_length}; {LOWER_IT}"
        return None

    def unready_reason(self) -> str | None:
        """Why this replica must get no requests; None when it may."""
        if self.draining:
            return "draining"
        if not self.answers:
            return "ollama does not answer"
        if not self.catalog.present:
            return f"no catalog at {self.settings.catalog} yet"
        if self.first_pass:
            waiting = [self.problems.get(model.name, f"models.{model.name}: loading") for model in self._unproven()]
            return waiting[0] if waiting else "looking"
        missing = sorted(name for name in self.proofs if name not in self.available)
        return f"models.{missing[0]}: got it gone from the store, want it; look at the writer's log" if missing else None

    def context(self) -> dict[str, Any]:
        """What the probe reads: for each model of the catalog, the tokens that the server allocated."""
        return {
            "replica": self.settings.replica,
            "revision": self.settings.revision,
            "reason": self.unready_reason(),
            "models": [
                {
                    "name": model.name,
                    "context_length": model.context_length,
                    "effective_context": self._effective(model),
                    "problem": self.problems.get(model.name),
                }
                for model in self.catalog.models
            ],
        }

    def _effective(self, model: Model) -> int | None:
        found = self.loaded.get(model.name)
        if found is not None and model.matches(found.digest):
            return found.context_length
        proof = self.proofs.get(model.name)
        return proof.context_length if proof is not None and model.matches(proof.digest) else None

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


LOWER_IT = "lower its contextLength, or give it a model and memory that hold more"
