"""How large a prompt can be at most, from its bytes alone: a token is at least one byte."""

import functools
from typing import Any

from api_server.paths import (
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    NATIVE_EMBED,
    NATIVE_GENERATE,
    RESPONSES,
    Payload,
    encode,
)

_CONVERSATIONS = {MESSAGES: ("system", "messages"), COUNT_TOKENS: ("system", "messages"), RESPONSES: ("instructions", "input")}
"""The fields that are the prompt; of chat it is `messages` alone."""

_TOOL_WORDS = 1024
"""Tokens that a template says about tools beside the tools themselves. The longest of the families that call tools (gpt-oss, Qwen, Llama)
needs under 500."""

_MEDIUM = 4096
"""Bytes of text that take about the tokens of an image, some 1,000 in the families that see."""


def most_tokens(path: str, payload: Payload) -> int | None:
    """More tokens than the prompt can have, by its bytes; None where bytes say nothing: an image is a fixed number of tokens."""
    if path in (NATIVE_EMBED, EMBEDDINGS):
        inputs = payload.get("input")
        return max((_size(each) for each in (inputs if isinstance(inputs, list) else [inputs])), default=0)
    if path in (COMPLETIONS, NATIVE_GENERATE):
        if payload.get("images") or payload.get("context"):
            return None
        return sum(_size(payload.get(key)) for key in ("prompt", "suffix", "system"))
    if has_media(path, payload):
        return None
    tools = payload.get("tools")
    prompt = sum(_size(payload.get(key)) for key in _CONVERSATIONS.get(path, ("messages",)))
    # A template may print the tools with other spaces than they came with.
    return prompt + (2 * _size(tools) + _TOOL_WORDS if tools else 0)


def _size(value: Any) -> int:
    """UTF-8 bytes; of anything but text, as JSON, whose punctuation outweighs a template's marks."""
    if value is None:
        return 0
    return len(value.encode() if isinstance(value, str) else encode(value))


def has_media(path: str, payload: Payload) -> bool:
    """Whether an image or a sound is part of the prompt."""
    if path in _CONVERSATIONS:
        return _has_image(payload[_CONVERSATIONS[path][-1]])
    if payload.get("images"):
        return True
    for message in payload.get("messages") or []:
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        if isinstance(content, list) and any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            return True
        if message.get("images"):
            return True
    return False


def without_media(size: int, value: Any, *, encoded: bool = False) -> int:
    """Bytes of a request of `size`, with what a model sees of each image or sound in it instead of its bytes."""
    if isinstance(value, str):
        return size - len(value) + _MEDIUM if encoded or value.startswith("data:") else size
    if isinstance(value, list):
        return functools.reduce(lambda left, each: without_media(left, each, encoded=encoded), value, size)
    if isinstance(value, dict):
        for key, each in value.items():
            size = without_media(size, each, encoded=key in ("data", "images"))
    return size


def _has_image(content: Any) -> bool:
    """Within turns, or their parts, or the parts of a tool's result among them."""
    return isinstance(content, list) and any(
        isinstance(part, dict) and (part.get("type") in ("image", "input_image") or _has_image(part.get("content"))) for part in content
    )
