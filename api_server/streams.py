"""How the streams of each API speak: where an event ends, what their readers skip, what the last event is, and how a failure is said.

Sources: openai-python 3.57, _streaming.py (skips comments, raises on an `error`); Codex, codex-api/src/sse/responses.rs (reads
`response.failed`, passes over what it does not know); Anthropic's API reference, streaming (`ping`, `error`).
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from api_server.errors import ApiError
from api_server.paths import encode


@dataclass(frozen=True)
class Stream:
    content_type: str
    mark: bytes
    """The end of an event, as servers write it."""
    sign: bytes
    """A sign of life: what every reader of such a stream skips."""
    last: re.Pattern[bytes]
    """What the last event of a whole stream has, or of one whose server says that it failed."""
    numbers: bytes
    """What an event has that says how many tokens were used."""
    failure: Callable[[ApiError, str, str], bytes]
    """An error in the middle, from the error, the request's id, and the model."""


def _event(name: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), encode(data))


def _said_to_openai(error: ApiError, _: str, __: str) -> bytes:
    # No [DONE] follows: that is how a client tells a cut stream from a finished one.
    return b"data: " + encode(error.body) + b"\n\n"


def _said_to_ollama(error: ApiError, _: str, __: str) -> bytes:
    return encode(error.shaped("ollama")) + b"\n"


def _said_to_anthropic(error: ApiError, request_id: str, _: str) -> bytes:
    return _event("error", error.shaped("anthropic", request_id))


def _said_to_responses(error: ApiError, request_id: str, model: str) -> bytes:
    """Two events: OpenAI's own library raises on the first one, Codex reads the second one alone."""
    said = error.body["error"]
    flat = {"type": "error", "sequence_number": 0, "code": said["code"], "message": said["message"], "param": said["param"], "error": said}
    reason = {"code": said["code"] or "server_error", "message": said["message"]}
    response = {"id": f"resp_{request_id}", "object": "response", "created_at": int(time.time()), "status": "failed", "error": reason}
    response |= {"incomplete_details": None, "model": model, "output": [], "usage": None}
    return _event("error", flat) + _event("response.failed", {"type": "response.failed", "sequence_number": 1, "response": response})


def _names(*names: str) -> re.Pattern[bytes]:
    """Events by name, or the end that some servers say as in chat. Texts cannot look like one: they have no line of their own."""
    return re.compile(rf"^event: ?({'|'.join(map(re.escape, names))})\s*$|^data: ?\[DONE\]".encode(), re.MULTILINE)


_SSE, _COMMENT = "text/event-stream", b": working\n\n"
_USAGE = b'"usage"'
STREAMS = {
    "sse": Stream(_SSE, b"\n\n", _COMMENT, re.compile(rb'^data: ?\[DONE\]|"error"', re.MULTILINE), _USAGE, _said_to_openai),
    "responses": Stream(
        _SSE,
        b"\n\n",
        _COMMENT,
        _names("response.completed", "response.incomplete", "response.failed", "error"),
        _USAGE,
        _said_to_responses,
    ),
    "messages": Stream(
        _SSE, b"\n\n", b'event: ping\ndata: {"type": "ping"}\n\n', _names("message_stop", "error"), _USAGE, _said_to_anthropic
    ),
    # White space in front of a document. An empty line would not do: Ollama's own clients parse each line (ollama-python 0.6, _client.py).
    "ndjson": Stream("application/x-ndjson", b"\n", b" ", re.compile(rb'"done": ?true|"error"'), b'"prompt_eval_count"', _said_to_ollama),
}
