"""Looks at answers while they pass: tokens that were used, and the chunk about them that a client did not ask for."""

import re
import time
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import msgspec

from api_server.paths import Payload
from api_server.streams import STREAMS, Stream

_LONGEST_EVENT = 8 * 2**20
"""Bytes; beyond it an answer is passed on unseen. Ollama's own limit for an event."""
_LONGEST_DOCUMENT = 2 * 2**20
"""The same for an answer that is one document, where nobody has to see all of it."""
_MOST = 2**53
"""Tokens; from here on a float is no exact number."""
_EVENT_END = re.compile(rb"\r?\n\r?\n")


class _Said(msgspec.Struct):
    """What is read of a document or an event; everything else is passed over, not made into values."""

    usage: Any = None
    choices: msgspec.Raw = msgspec.Raw()
    prompt_eval_count: Any = None
    eval_count: Any = None
    message: msgspec.Raw = msgspec.Raw()
    """Within the first event of a stream of messages, where its `usage` is."""
    response: msgspec.Raw = msgspec.Raw()
    """The same of the last event of a stream of a response."""


_SAID = msgspec.json.Decoder(_Said)


@dataclass
class Reader:
    """Takes the chunks of one answer and gives back what the client gets of them."""

    stream: str
    """One of streams.STREAMS, or empty for one JSON document."""
    drop_usage: bool = False
    """The client did not ask for the usage chunk of the stream."""
    longest_document: int = _LONGEST_DOCUMENT
    """Bytes of an answer that is one document, up to which it is passed on when it is whole."""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Of the prompt, as its server says; None when it does not."""
    completion_tokens: int = 0
    events: int = 0
    """Whole events that came."""
    first: float | None = None
    """When the first event was whole."""
    _buffer: bytearray = field(default_factory=bytearray)
    _searched: int = 0
    """Bytes of the buffer in which no event ends."""
    _blind: bool = False
    _last: bytes = b""
    """The last whole event."""
    _kind: Stream | None = None

    def __post_init__(self) -> None:
        self._kind = STREAMS.get(self.stream)

    @property
    def between(self) -> bool:
        """Whether what was given back so far ends with a whole event that is not the last one."""
        return not self._blind and not self._ends()

    def feed(self, chunk: bytes) -> bytes:
        if self._blind:
            return chunk
        kind = self._kind
        # Whole events without numbers, as nearly all are, go on as they came. No calls of our own: they would cost as much again.
        if kind is not None and not self._buffer and chunk.endswith(kind.mark) and kind.numbers not in chunk and b"\r" not in chunk:
            if self.first is None:
                self.first = time.monotonic()
            mark, end = kind.mark, len(chunk) - len(kind.mark)
            if chunk.find(mark) == end:
                self.events += 1
                self._last = chunk
            else:
                self.events += chunk.count(mark)
                before = chunk.rfind(mark, 0, end)
                self._last = chunk if before < 0 else chunk[before + len(mark) :]
            return chunk
        self._buffer += chunk
        kept = bytearray()
        while self.stream and (end := self._event_end()) is not None:
            event = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._searched = 0
            self.events += 1
            if self.first is None:
                self.first = time.monotonic()
            if self._keep(event):
                kept += event
            self._last = event
        if len(self._buffer) > (_LONGEST_EVENT if self.stream else self.longest_document):
            self._blind = True
            kept += self._buffer
            self._buffer = bytearray()
        return bytes(kept)

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
        return self._kind is not None and self._kind.last.search(self._last) is not None

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
        if self._kind is None or self._kind.numbers not in event:
            return True
        said = self._read(event if self.stream == "ndjson" else event[event.find(b"data:") + 5 :])
        return not (said and self.drop_usage and said.usage and bytes(said.choices).split() in ([b"[]"], [b"[", b"]"]))

    def _read(self, document: bytes) -> _Said | None:
        """None when it is no JSON object."""
        try:
            said = _SAID.decode(document)
            if self.stream in ("messages", "responses") and (inner := said.message or said.response):
                said = _SAID.decode(inner)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        usage: Payload = said.usage if isinstance(said.usage, dict) else {}
        self.prompt_tokens = _number(usage.get("prompt_tokens"), _input_tokens(usage), said.prompt_eval_count, self.prompt_tokens)
        self.completion_tokens = _number(
            usage.get("completion_tokens"), usage.get("output_tokens"), said.eval_count, self.completion_tokens
        )  # fmt: skip
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        named = details.get("cached_tokens") if isinstance(details, dict) else usage.get("cache_read_input_tokens")
        if _is_count(named):
            self.cached_tokens = named
        return said


def _input_tokens(usage: Payload) -> int | None:
    """Of Responses, or of Messages, which counts what the server still held, and what it keeps for later, beside the rest."""
    if not _is_count(rest := usage.get("input_tokens")):
        return None
    return rest + _number(usage.get("cache_read_input_tokens")) + _number(usage.get("cache_creation_input_tokens"))


def _number(*values: object) -> int:
    return next((value for value in values if _is_count(value)), 0)


def _is_count(value: object) -> TypeGuard[int]:
    """Whether a metric can count it: a server may say anything."""
    return type(value) is int and 0 <= value < _MOST
