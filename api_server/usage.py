"""Looks at answers while they pass: tokens that were used, and the chunk about them that a client did not ask for."""

import re
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

_LONGEST_EVENT = 8 * 2**20
"""Bytes; beyond it an answer is passed on unseen. Ollama's own limit for an event."""
_LONGEST_DOCUMENT = 2 * 2**20
"""The same for an answer that is one document: up to here it is passed on when it is whole."""
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_MARKS = {"sse": b"\n\n", "ndjson": b"\n"}
"""Ends of events, as servers write them."""
_LAST = {"sse": re.compile(rb'^data: ?\[DONE\]|"error"', re.MULTILINE), "ndjson": re.compile(rb'"done": ?true|"error"')}
"""What the last event of a whole stream has, or of one whose server says that it failed."""


class _Said(msgspec.Struct):
    """What is read of a document or an event; everything else is passed over, not made into values."""

    usage: Any = None
    choices: msgspec.Raw = msgspec.Raw()
    prompt_eval_count: Any = None
    eval_count: Any = None


_SAID = msgspec.json.Decoder(_Said)


@dataclass
class Reader:
    """Takes the chunks of one answer and gives back what the client gets of them."""

    stream: str
    """`sse`, `ndjson`, or empty for one JSON document."""
    drop_usage: bool = False
    """The client did not ask for the usage chunk of the stream."""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Of the prompt, as its server says; None when it does not."""
    completion_tokens: int = 0
    first: float | None = None
    """When the first event was whole."""
    _buffer: bytearray = field(default_factory=bytearray)
    _searched: int = 0
    """Bytes of the buffer in which no event ends."""
    _blind: bool = False
    _last: bytes = b""
    """The last whole event."""

    @property
    def between(self) -> bool:
        """Whether what was given back so far ends with a whole event that is not the last one."""
        return not self._blind and not self._ends()

    def feed(self, chunk: bytes) -> bytes:
        if self._blind or (self.stream and not self._buffer and self._passes(chunk)):
            return chunk
        self._buffer += chunk
        kept = bytearray()
        while self.stream and (end := self._event_end()) is not None:
            event = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._searched = 0
            if self.first is None:
                self.first = time.monotonic()
            if self._keep(event):
                kept += event
            self._last = event
        if len(self._buffer) > (_LONGEST_EVENT if self.stream else _LONGEST_DOCUMENT):
            self._blind = True
            kept += self._buffer
            self._buffer = bytearray()
        return bytes(kept)

    def _passes(self, chunk: bytes) -> bool:
        """Whether a chunk is whole events without numbers, as nearly all are: they go on as they came, without a copy."""
        mark = _MARKS[self.stream]
        if not chunk.endswith(mark) or b"\r" in chunk or _has_numbers(chunk):
            return False
        if self.first is None:
            self.first = time.monotonic()
        before = chunk.rfind(mark, 0, -len(mark))
        self._last = chunk if before < 0 else chunk[before + len(mark) :]
        return True

    def rest(self) -> bytes | None:
        """What is left at the answer's end: a whole document, or nothing of a stream. None when the answer is not whole."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        if self._blind:
            return b""
        if self.stream == "ndjson" and rest.strip():
            # The one document of an answer that is no stream has no end of line.
            self._last = rest
            return rest if self._read(rest) and self._ends() else None
        if self.stream:
            return b"" if self._ends() and not rest.strip() else None
        return rest if self._read(rest) else None

    def _ends(self) -> bool:
        return _LAST[self.stream].search(self._last) is not None

    def _event_end(self) -> int | None:
        if self.stream == "ndjson":
            end = self._buffer.find(b"\n", self._searched)
            self._searched = len(self._buffer)
            return None if end < 0 else end + 1
        match = _EVENT_END.search(self._buffer, max(0, self._searched - 3))
        self._searched = len(self._buffer)
        return None if match is None else match.end()

    def _keep(self, event: bytes) -> bool:
        """Only an event with numbers is read: the others pass at the cost of a search."""
        if not _has_numbers(event):
            return True
        said = self._read(event.removeprefix(b"data:"))
        return not (said and self.drop_usage and said.usage and bytes(said.choices).split() in ([b"[]"], [b"[", b"]"]))

    def _read(self, document: bytes) -> _Said | None:
        """None when it is no JSON object."""
        try:
            said = _SAID.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        usage = said.usage if isinstance(said.usage, dict) else {}
        self.prompt_tokens = _number(usage.get("prompt_tokens"), said.prompt_eval_count, self.prompt_tokens)
        self.completion_tokens = _number(usage.get("completion_tokens"), said.eval_count, self.completion_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
            self.cached_tokens = cached
        return said


def _has_numbers(events: bytes) -> bool:
    return b'"usage"' in events or b'"prompt_eval_count"' in events


def _number(*values: object) -> int:
    return next((value for value in values if isinstance(value, int)), 0)
