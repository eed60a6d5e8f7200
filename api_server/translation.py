"""A request of any endpoint as one of Ollama's own API that has the same prompt, so that Ollama can count it."""

import json
from typing import Any

from api_server import errors
from api_server.agent_translation import of_messages, of_responses
from api_server.paths import (
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    NATIVE_CHAT,
    NATIVE_EMBED,
    NATIVE_GENERATE,
    RESPONSES,
    Payload,
)

_THINK = {"none": False, "minimal": "low", "xhigh": "max", "ultra": "max"}
"""How Ollama's OpenAI layer reads reasoning_effort, where the word is not its own. Source: ollama v0.32.15, openai/openai.go."""
_GENERATE_FIELDS = ("prompt", "suffix", "system", "images", "context", "raw", "think")
_CHAT_FIELDS = ("messages", "tools", "think")


def counting_request(path: str, payload: Payload) -> tuple[str, Payload]:
    """Path and body, in Ollama's own API, of a request with the same prompt that generates one token.

    Raises ApiError 400 on messages that Ollama would refuse too.
    """
    once = {"stream": False, "options": {"num_predict": 1}}
    if path in (EMBEDDINGS, NATIVE_EMBED):
        return NATIVE_EMBED, {"input": payload.get("input")}
    if path in (COMPLETIONS, NATIVE_GENERATE):
        return NATIVE_GENERATE, {key: payload[key] for key in _GENERATE_FIELDS if key in payload} | once
    if path == NATIVE_CHAT:
        return NATIVE_CHAT, {key: payload[key] for key in _CHAT_FIELDS if key in payload} | once
    if path in (MESSAGES, COUNT_TOKENS):
        return NATIVE_CHAT, of_messages(payload) | once
    effort = (payload.get("reasoning") or {}).get("effort") or payload.get("reasoning_effort")
    think: Payload = {"think": _THINK.get(effort, effort) if isinstance(effort, str) else effort} if effort else {}
    if path == RESPONSES:
        return NATIVE_CHAT, of_responses(payload) | think | once
    body: Payload = {"messages": _native_messages(payload["messages"])} | think | once
    if payload.get("tools"):
        body["tools"] = payload["tools"]
    return NATIVE_CHAT, body


def _native_messages(messages: list[Payload]) -> list[Payload]:
    """OpenAI's messages, as history.py leaves them, in Ollama's form, part by part as Ollama's own OpenAI layer does it."""
    native: list[Payload] = []
    names: dict[str, str] = {}
    for message in messages:
        calls = [_native_call(call) for call in message.get("tool_calls") or []]
        names |= {str(call["id"]): call["function"]["name"] for call in calls}
        content = message["content"]
        parts = [_native_part(part) for part in content] if isinstance(content, list) else [{"content": content}]
        own: Payload = {"thinking": message.get("reasoning"), "tool_calls": calls, "tool_call_id": message.get("tool_call_id")}
        own["tool_name"] = message.get("name") or names.get(str(message.get("tool_call_id")))
        native += [{"role": message["role"], **part} for part in parts]
        if native:
            native[-1] |= {key: value for key, value in own.items() if value}
    return native


def _native_call(call: Payload) -> Payload:
    function = call["function"]
    return {"id": call.get("id"), "function": {"name": function["name"], "arguments": json.loads(function["arguments"])}}


def _native_part(part: Payload) -> Payload:
    if part["type"] == "text":
        return {"content": part["text"]}
    source: Any = part.get("image_url") or part.get("input_audio")
    data = source.get("url") or source.get("data") if isinstance(source, dict) else source
    if not isinstance(data, str):
        raise errors.bad_request(f"messages: got a part of type {part['type']!r} without data, want data:image/png;base64,…; correct it")
    return {"images": [data.rpartition("base64,")[2]]}
