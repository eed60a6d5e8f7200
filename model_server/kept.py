"""Conversations that outlive llama.cpp's process: what its slots hold, in files on a disk of the pod's node.

They are written when the server has drained, and read by the next one before it says that it is ready. Whoever is killed leaves none: then
the next turn reads its whole prompt again, as without this. Each file is used once, and by the same engine alone: the same weights,
program, context and slots. A sum tells whether a file is as it was written. A slot gives a prompt what it has of the very same tokens, as
it did before.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import BaseModel, ConfigDict, ValidationError

log = logging.getLogger("model_server")
_LIST = "kept.json"
_SLOTS = aiohttp.ClientTimeout(total=1)
"""For a question about slots, which waits for the step that an engine computes: who reads metrics must not wait for a long one."""
_UNEXPECTED = (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError)


class _Slot(BaseModel):
    """A slot in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    file: str
    size: int
    sha256: str
    tokens: int


class _Kept(BaseModel):
    """All of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    slots: list[_Slot]


class Kept:
    """`directory`: of this server alone. `limit_bytes`: what it may take, with one file more while that is written. `limit_s`: for all of
    writing, and for all of reading."""

    def __init__(self, directory: Path, limit_bytes: int, limit_s: float) -> None:
        self.directory, self._limit_bytes, self._limit_s = directory, limit_bytes, limit_s
        self._restored: dict[int, int] = {}
        """Slot to tokens; llama.cpp tells only what a request has put into a slot."""
        self._unused: dict[int, object] = {}
        """Of those, slots that no request has come back to, and the number of the request that each had before."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            log.warning("%s: got %s, want a directory to write; no conversation is kept", directory, error)

    async def save(self, session: aiohttp.ClientSession, url: str, engine: str) -> None:
        """Keep the conversations of idle slots for the next process. A disk that fails costs their warmth, and ends nothing."""
        try:
            await self._save(session, url, engine)
        except OSError as error:
            log.warning("%s: got %s, want a directory to write; no conversation is kept", self.directory, error)

    async def _save(self, session: aiohttp.ClientSession, url: str, engine: str) -> None:
        """The longest conversation first, for as long as there are bytes and time. `engine`: what must be the same to read them."""
        self._clear()
        slots: list[_Slot] = []
        left = self._limit_bytes
        try:
            async with asyncio.timeout(self._limit_s):
                for number, held in await self._held(session, url):
                    path = self.directory / f"{time.time_ns():x}-{number}.slot"
                    said = await _asked(session, f"{url}/slots/{number}?action=save", path.name)
                    size = path.stat().st_size
                    if size > left:
                        path.unlink()
                        continue
                    left -= size
                    slots.append(_Slot(number=number, file=path.name, size=size, sha256=await _sum(path), tokens=int(said["n_saved"])))
                    log.info("kept %d tokens of slot %d, %d bytes", held, number, size)
        except _UNEXPECTED as error:
            log.warning("%s: got %s, want conversations kept there; what is missing is read again", self.directory, error or "no time left")
        names = {slot.file for slot in slots}
        for path in self.directory.glob("*.slot"):
            if path.name not in names:
                path.unlink()
        new = self.directory / f"{_LIST}.new"
        new.write_text(_Kept(engine=engine, slots=slots).model_dump_json())
        new.replace(self.directory / _LIST)

    async def restore(self, session: aiohttp.ClientSession, url: str, engine: str) -> int:
        """Tokens that are there again of what was kept for this engine; then nothing is kept any more. What cannot be read is read from
        prompts again."""
        try:
            kept = self._taken()
        except FileNotFoundError:
            return 0
        except (OSError, ValidationError) as error:
            log.warning("%s: got %s, want a list of its own that it can remove; nothing is read", self.directory / _LIST, _words(error))
            self._clear()
            return 0
        try:
            if kept.engine != engine:
                log.info("conversations were kept by another engine, model or size; nothing is read")
                return 0
            async with asyncio.timeout(self._limit_s):
                for slot in kept.slots:
                    if await _sum(self.directory / slot.file) != slot.sha256:
                        log.warning("%s: got other content than was written, want the same; it is left out", slot.file)
                        continue
                    said = await _asked(session, f"{url}/slots/{slot.number}?action=restore", slot.file)
                    self._restored[slot.number] = int(said["n_restored"])
        except _UNEXPECTED as error:
            log.warning("%s: got %s, want conversations from there; their prompts are read again", self.directory, error or "no time left")
        finally:
            self._clear()
        log.info("%d tokens of conversations are there again", sum(self._restored.values()))
        with contextlib.suppress(*_UNEXPECTED):
            tasks = await _tasks(session, url)
            self._unused = {number: tasks.get(number) for number in self._restored}
        return sum(self._restored.values())

    async def returned(self, session: aiohttp.ClientSession, url: str) -> int:
        """Tokens of restored slots that got their first request since this was asked last. Raises what a question may."""
        if not self._unused:
            return 0
        tasks = await _tasks(session, url)
        used = [number for number, before in self._unused.items() if tasks.get(number) != before]
        for number in used:
            del self._unused[number]
        return sum(self._restored[number] for number in used)

    def _taken(self) -> _Kept:
        """The list, which is removed before any file of it is read: an engine that this kills would be killed again."""
        content = (self.directory / _LIST).read_bytes()
        (self.directory / _LIST).unlink()
        return _Kept.model_validate_json(content)

    async def _held(self, session: aiohttp.ClientSession, url: str) -> Sequence[tuple[int, int]]:
        """Slots that hold a conversation and are idle, with their tokens, the longest first. Source: llama.cpp, tools/server/README.md."""
        async with session.get(f"{url}/slots") as response:
            slots = await response.json()
        idle = [(int(slot["id"]), int(slot.get("n_prompt_tokens", 0))) for slot in slots if not slot["is_processing"]]
        found = [(number, tokens or self._restored.get(number, 0)) for number, tokens in idle]
        return sorted(((number, tokens) for number, tokens in found if tokens), key=lambda each: -each[1])

    def _clear(self) -> None:
        """As far as the disk lets it."""
        with contextlib.suppress(OSError):
            for path in list(self.directory.iterdir()):
                with contextlib.suppress(OSError):
                    path.unlink()


def identity(digest: str, version: str, parameters: Mapping[str, Any]) -> str:
    """What two engines must have in common for one to read what the other has kept."""
    same = {name: parameters[name] for name in ("context", "parallel", "binary")}
    return json.dumps({"weights": digest, "program": version, **same}, sort_keys=True)


def _words(error: Exception) -> str:
    return "another list" if isinstance(error, ValidationError) else str(error)


async def _asked(session: aiohttp.ClientSession, url: str, name: str) -> Mapping[str, Any]:
    """llama.cpp's answer to a request for a slot. Raises ValueError with its own words."""
    async with session.post(url, json={"filename": name}) as response:
        if response.status != HTTPStatus.OK:
            raise ValueError((await response.text())[:200])
        return await response.json()


async def _tasks(session: aiohttp.ClientSession, url: str) -> dict[int, object]:
    """Slot to the number of its last request. Source: llama.cpp, tools/server/README.md."""
    async with session.get(f"{url}/slots", timeout=_SLOTS) as response:
        return {int(slot["id"]): slot.get("id_task") for slot in await response.json()}


async def _sum(path: Path) -> str:
    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return await asyncio.to_thread(read)
