"""The endpoints that are forwarded, and which API each belongs to."""

from typing import Any

import msgspec

Payload = dict[str, Any]
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
NATIVE_CHAT, NATIVE_GENERATE, NATIVE_EMBED = "/api/chat", "/api/generate", "/api/embed"
INFERENCE = (CHAT, COMPLETIONS, EMBEDDINGS, NATIVE_CHAT, NATIVE_GENERATE, NATIVE_EMBED)
"""Posts that are forwarded. Ollama's pull, push, create, copy, delete and blobs are not among them."""


def is_native(path: str) -> bool:
    """Whether the endpoint is one of Ollama's own API."""
    return path.startswith("/api/")


def encode(value: Any) -> bytes:
    """As JSON in UTF-8. Five times as fast as the standard library, and without its text of four bytes a character."""
    return msgspec.json.encode(value)
