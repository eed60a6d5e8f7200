"""A made-up model server for measurements: it answers OpenAI's chat, at once and always the same, at little cost.

    python -m bench.upstream PORT [ADDRESS …]

The user's message decides about a stream: `Say chunks=64 pause_ms=5` makes so many chunks with such pauses, and with ` stays` after it, the
stream then stays open and says nothing more. A request that is no stream gets one document. It has Ollama's own endpoints too, as far as a
gateway asks them: lists of models, and the count of a prompt.
"""

import asyncio
import json
import re
import sys
from collections.abc import Sequence

MODEL = "a"
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')
_USAGE = re.compile(rb'"include_usage": ?true')
_WANTED = re.compile(rb"chunks=(\d+) pause_ms=(\d+)( stays)?")
_TOKENS = {"prompt_tokens": 24, "completion_tokens": 64, "total_tokens": 88}
_CHUNK = {"id": "chatcmpl-0f7f3a5be2c94a0c", "object": "chat.completion.chunk", "created": 1790000000, "model": MODEL}
_CHOICE = {"index": 0, "logprobs": None, "finish_reason": None}


def _event(**fields: object) -> bytes:
    """One server-sent event, in a chunk of HTTP's."""
    data = b"data: " + json.dumps(_CHUNK | fields, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _document(value: object, status: bytes = b"200 OK") -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


_START = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_WORD = _event(choices=[_CHOICE | {"delta": {"content": " tick"}}])
_LAST = _event(choices=[_CHOICE | {"delta": {}, "finish_reason": "stop"}])
_NUMBERS = _event(choices=[], usage=_TOKENS)
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_MESSAGE = {"index": 0, "message": {"role": "assistant", "content": "tick " * 16}, "finish_reason": "stop"}
_ANSWER = _document(_CHUNK | {"object": "chat.completion", "choices": [_MESSAGE], "usage": _TOKENS})
_LISTED = {"name": f"{MODEL}:latest", "model": f"{MODEL}:latest", "digest": "0" * 64}
_GETS = {
    b"/health": _document({"status": "ok"}),
    b"/v1/models": _document({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}),
    b"/api/tags": _document({"models": [_LISTED]}),
    b"/api/ps": _document({"models": [_LISTED]}),
}
_POSTS = {b"/api/chat": _document({"done": True, "prompt_eval_count": 12})}
_ABSENT = _document({"error": "no such path"}, b"404 Not Found")


class Connection(asyncio.Protocol):
    """One client's: its requests, one after the other."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._left = 0
        """Chunks of the answer that are still to be sent."""
        self._pause_s = 0.0
        self._end = b""
        self._next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a server of asyncio's makes no other)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(_HEAD_END)) >= 0:
            found = _LENGTH.search(self._received, 0, end)
            whole = end + len(_HEAD_END) + (int(found[1]) if found else 0)
            if len(self._received) < whole:
                return
            request = bytes(self._received[:whole])
            del self._received[:whole]
            self._answer(*request.split(b" ", 2))

    def _answer(self, method: bytes, path: bytes, rest: bytes) -> None:
        if method == b"GET":
            self._transport.write(_GETS.get(path, _ABSENT))
        elif path != b"/v1/chat/completions":
            self._transport.write(_POSTS.get(path, _ABSENT))
        elif not _STREAM.search(rest):
            self._transport.write(_ANSWER)
        else:
            wanted = _WANTED.search(rest)
            chunks, pause_ms, stays = wanted.groups() if wanted else (b"1", b"0", None)
            self._left, self._pause_s = int(chunks), int(pause_ms) / 1000
            self._end = b"" if stays else _LAST + (_NUMBERS if _USAGE.search(rest) else b"") + _DONE
            self._transport.write(_START)
            self._say()

    def _say(self) -> None:
        self._left -= 1
        if self._left > 0:
            self._transport.write(_WORD)
            self._next = asyncio.get_running_loop().call_later(self._pause_s, self._say)
        else:
            self._transport.write(_WORD + self._end)


async def serve(port: int, hosts: Sequence[str]) -> None:
    """On addresses of loopback, for ever."""
    server = await asyncio.get_running_loop().create_server(Connection, hosts, port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2:] or ["127.0.0.1"]))
