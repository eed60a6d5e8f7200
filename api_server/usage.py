"""Looks at answers while they pass: tokens that were used, and the chunk about them that a client did not ask for."""

import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

_LONGEST_EVENT = 8 * 2**20
"""Bytes; beyond it an answer is passed on unseen. Ollama's own limit for an event."""
_EVENT_END = re.compile(rb"\r?\n\r?\n")


@dataclass
class Reader:
    """Takes the chunks of one answer and gives back what the client gets of them."""

    stream: str
    """`sse`, `ndjson`, or empty for one JSON document."""
    drop_usage: bool = False
    """The client did not ask for the usage chunk of the stream."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first: float | None = None
    """When the first event was whole."""
    _buffer: bytearray = field(default_factory=bytearray)
    _blind: bool = False

    def feed(self, chunk: bytes) -> bytes:
        if self._blind:
            return chunk
        self._buffer += chunk
        if len(self._buffer) > _LONGEST_EVENT:
            self._blind = True
            rest, self._buffer = bytes(self._buffer), bytearray()
            return rest if self.stream else chunk
        if not self.stream:
            return chunk
        kept = bytearray()
        while (end := self._event_end()) is not None:
            event = bytes(self._buffer[:end])
            del self._buffer[:end]
            if self.first is None:
                self.first = time.monotonic()
            if self._keep(event):
                kept += event
        return bytes(kept)

    def rest(self) -> bytes:
        """What is left at the answer's end."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        if self.stream:
            return rest
        self._read(rest)
        return b""

    def _event_end(self) -> int | None:
        if self.stream == "ndjson":
            end = self._buffer.find(b"\n")
            return None if end < 0 else end + 1
        match = _EVENT_END.search(self._buffer)
        return None if match is None else match.end()

    def _keep(self, event: bytes) -> bool:
        """Only an event with numbers is read: the others pass at the cost of a search."""
        if b'"usage"' not in event and b'"prompt_eval_count"' not in event:
            return True
        body = self._read(event.removeprefix(b"data:"))
        return not (self.drop_usage and body.get("choices") == [] and body.get("usage"))

    def _read(self, document: bytes) -> dict[str, Any]:
        try:
            body = json.loads(document)
        except ValueError:
            return {}
        if not isinstance(body, dict):
            return {}
        usage = body.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        self.prompt_tokens = _number(usage.get("prompt_tokens"), body.get("prompt_eval_count"), self.prompt_tokens)
        self.completion_tokens = _number(usage.get("completion_tokens"), body.get("eval_count"), self.completion_tokens)
        return body


def _number(*values: object) -> int:
    return next((value for value in values if isinstance(value, int)), 0)
