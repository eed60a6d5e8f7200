"""Requests of Messages and Responses, as messages.py and responses.py leave them, in the form of Ollama's own chat, so that Ollama can
count them. They go to its own layers for the answer, which this follows: ollama v0.32.15, anthropic/anthropic.go and openai/responses.go.
"""

import json
from typing import Any

from api_server.paths import Payload

_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "max"}


def of_messages(payload: Payload) -> Payload:
    """Messages, tools and think of Ollama's chat."""
    native: list[Payload] = [{"role": "system", "content": payload["system"]}] if payload.get("system") else []
    for message in payload["messages"]:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        native += [_result(block) for block in blocks if block["type"] == "tool_result"] + _message(message["role"], blocks)
    body: Payload = {"messages": native}
    if tools := payload.get("tools"):
        body["tools"] = [_function(tool, "input_schema") for tool in tools]
    kind = (payload.get("thinking") or {}).get("type")
    effort = _EFFORTS.get(str((payload.get("output_config") or {}).get("effort")).lower())
    think = True if kind == "enabled" else False if kind == "disabled" else effort
    return body if think is None else body | {"think": think}


def _message(role: str, blocks: list[Payload]) -> list[Payload]:
    """What is no result of a tool; nothing where there is no more."""
    own: Payload = {"content": "".join(block["text"] for block in blocks if block["type"] == "text")}
    own["images"] = [block["source"]["data"] for block in blocks if block["type"] == "image"]
    own["tool_calls"] = [_call(block["id"], block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    own["thinking"] = next((block["thinking"] for block in reversed(blocks) if block["type"] == "thinking"), "")
    own = {key: value for key, value in own.items() if value}
    return [{"role": role, "content": "", **own}] if own else []


def _result(block: Payload) -> Payload:
    content = block["content"]
    parts: list[Payload] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    images = [part["source"]["data"] for part in parts if part["type"] == "image"]
    return {"role": "tool", "content": text, "tool_call_id": block["tool_use_id"]} | ({"images": images} if images else {})


def _call(call: str, name: str, arguments: Payload) -> Payload:
    return {"id": call, "function": {"name": name, "arguments": arguments}}


def _function(tool: Payload, schema: str, prefix: str = "") -> Payload:
    function: Payload = {"name": prefix + tool["name"], "description": tool.get("description") or "", "parameters": tool.get(schema) or {}}
    return {"type": "function", "function": function}


def of_responses(payload: Payload) -> Payload:
    """Messages and tools of Ollama's chat."""
    native: list[Payload] = [{"role": "system", "content": payload["instructions"]}] if payload.get("instructions") else []
    items = payload["input"]
    if isinstance(items, str):
        return _with_tools([*native, {"role": "user", "content": items}], payload)
    thought = ""
    for item in items:
        if item["type"] == "reasoning":
            thought = item["encrypted_content"]
            continue
        if item["type"] == "function_call":
            if not native or native[-1]["role"] != "assistant":
                native.append({"role": "assistant", "content": ""})
            call = _call(item["call_id"], item["name"], json.loads(item["arguments"]))
            native[-1]["tool_calls"] = [*native[-1].get("tool_calls", []), call]
        elif item["type"] == "function_call_output":
            native.append({"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]})
        else:
            native.append({"role": item["role"], **_content(item["content"])})
        if thought and native[-1]["role"] == "assistant":
            native[-1]["thinking"], thought = thought, ""
    return _with_tools(native, payload)


def _content(parts: list[Payload]) -> Payload:
    images = [part["image_url"].rpartition("base64,")[2] for part in parts if part["type"] == "input_image"]
    return {"content": "".join(part.get("text", "") for part in parts)} | ({"images": images} if images else {})


def _with_tools(messages: list[Payload], payload: Payload) -> Payload:
    tools: list[Any] = []
    for tool in payload.get("tools") or []:
        members, prefix = (tool["tools"], f"{tool['name']}.") if tool["type"] == "namespace" else ([tool], "")
        tools += [_function(each, "parameters", prefix) for each in members]
    return {"messages": messages} | ({"tools": tools} if tools else {})
