"""Tokens of one answer, for limits and for the usage of a key."""

import msgspec

from api_server.requests import Asked
from api_server.usage import Reader

_BYTES = 4
"""Of a prompt for one token, where no server has counted: of English text and code."""


class Spent(msgspec.Struct, frozen=True):
    """Tokens."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt, those that the server did not have to read again."""
    completion: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Of a key, with one model, since this gateway started. `unknown`: refused before its model was known."""

    model: str
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompts, those that servers did not have to read again."""
    completion_tokens: int = 0


def spent(reader: Reader, asked: Asked) -> Spent:
    """As the server says. A stream whose end never came, as its client left, has no count, or only one of its beginning: then a token for
    each event that came, and for the prompt a quarter of its bytes."""
    prompt, written = max(0, reader.prompt_tokens), max(0, reader.completion_tokens)
    if reader.first is not None and (not (prompt or written) or (reader.stream and reader.between)):
        prompt, written = prompt or -(-(asked.most_tokens or 0) // _BYTES), max(written, reader.events)
    return Spent(prompt, min(prompt, max(0, reader.cached_tokens or 0)), written)
