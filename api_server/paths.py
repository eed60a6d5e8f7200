"""The endpoints that are forwarded: one table, with what tells them apart."""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

Payload = dict[str, Any]
Api = Literal["openai", "anthropic", "ollama"]
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES, COUNT_TOKENS, RERANK = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/rerank"
NATIVE_CHAT, NATIVE_GENERATE, NATIVE_EMBED = "/api/chat", "/api/generate", "/api/embed"


@dataclass(frozen=True)
class Endpoint:
    """A POST that goes on to a server."""

    path: str
    api: Api = "openai"
    """Whose shape its errors have."""
    stream: str = ""
    """How an answer comes in parts, by its name in streams.py; empty: always as one document."""
    prompt: str = ""
    """The field that must not be empty; empty: none."""
    limit: str = ""
    """The field with the most tokens of an answer; empty: there is none, or it is among Ollama's options."""


_ALL = (
    Endpoint(CHAT, stream="sse", prompt="messages", limit="max_tokens"),
    Endpoint(COMPLETIONS, stream="sse", limit="max_tokens"),
    Endpoint(RESPONSES, stream="responses", prompt="input", limit="max_output_tokens"),
    Endpoint(MESSAGES, "anthropic", stream="messages", prompt="messages", limit="max_tokens"),
    Endpoint(COUNT_TOKENS, "anthropic", prompt="messages"),
    Endpoint(EMBEDDINGS),
    Endpoint(RERANK, prompt="documents"),
    Endpoint(NATIVE_CHAT, "ollama", stream="ndjson"),
    Endpoint(NATIVE_GENERATE, "ollama", stream="ndjson"),
    Endpoint(NATIVE_EMBED, "ollama"),
)
ENDPOINTS = {endpoint.path: endpoint for endpoint in _ALL}
INFERENCE = tuple(ENDPOINTS)
"""Posts that are forwarded. Ollama's pull, push, create, copy, delete and blobs are not among them."""


def is_native(path: str) -> bool:
    """Whether the endpoint is one of Ollama's own API."""
    return path.startswith("/api/")


def api_of(path: str) -> Api:
    """Whose shape an error on this path has, also where it is no endpoint of ours."""
    return "anthropic" if path.startswith(MESSAGES) else "ollama" if is_native(path) else "openai"


def encode(value: Any) -> bytes:
    """As JSON in UTF-8. Five times as fast as the standard library, and without its text of four bytes a character."""
    return msgspec.json.encode(value)
