"""Anthropic's conversations, in the form that every engine takes. What history.py is for OpenAI's.

| what comes                                      | what goes on                       | why                                        |
| ----------------------------------------------- | ---------------------------------- | ------------------------------------------ |
| system as blocks                                | one text, a line for each          | both engines join them without a space     |
| the block `x-anthropic-billing-header`          | nothing                            | new each time: no prefix would stay warm   |
| a message of the system                         | text of the system, or of the user | strict templates raise; the prefix stays   |
| several blocks of text                          | one, a line for each               | both engines join them without a space     |
| results of tools beside text, in one message    | two messages, the results first    | llama.cpp puts the text before the results |
| a result as blocks of text                      | one text                           | as above                                   |
| `input` of a call that is no object             | {}                                 | Ollama: 400                                |
| a tool's schema without properties              | one with none of them              | Ollama says null, its engine: 400          |
| thoughts that are hidden, references to tools   | nothing                            | no server reads them                       |
| a document of text                              | its text                           | no server reads documents                  |
| a document of another kind, an image by address | 400                                | the fleet fetches nothing for a client     |
| cache_control, citations, and all other fields  | nothing                            | Go reads names without regard to case      |

A schema of the answer (`output_config.format`, which Claude Code sends for each session's title) becomes words of the system prompt: no
server has a field for it here, so it is a request to the model, and not held. A tool that a server would have to run, as Anthropic's web
search, is 400: nothing here runs tools for a client.
"""

import json
from typing import Any

from api_server import errors
from api_server.history import as_object
from api_server.paths import Payload
from api_server.tools import only, whole_schema

_BILLING = "x-anthropic-billing-header:"


def schema_of(payload: Payload) -> Payload | None:
    """That the answer shall have, by either name that Anthropic's API had for it."""
    config = payload.get("output_config")
    form = config.get("format") if isinstance(config, dict) else None
    form = form or payload.get("output_format")
    schema = form.get("schema") if isinstance(form, dict) else None
    return schema if isinstance(schema, dict) else None


def normalised(payload: Payload, schema: Payload | None = None) -> Payload:
    """The request with a conversation and tools as a server takes them. `schema`: that of the answer.

    Raises ApiError 400 that names the place of what has no meaning.
    """
    system = _texts(payload.get("system"), "system")
    messages: list[Payload] = []
    for index, message in enumerate(payload["messages"]):
        for each in _message(message, f"messages[{index}]"):
            if each["role"] != "system":
                messages.append(each)
            elif messages:
                messages.append(each | {"role": "user"})
            else:
                system += _texts(each["content"], f"messages[{index}].content")
    if schema is not None:
        system.append(f"Answer with one JSON document and nothing else. It has this JSON schema: {json.dumps(schema, ensure_ascii=False)}")
    tools, choice = _tools(payload.get("tools")), payload.get("tool_choice") or {}
    if tools and choice.get("type") == "tool":
        # llama.cpp takes it for any tool, so it gets that one alone.
        tools = only(tools, choice.get("name"), lambda tool: tool["name"])
    given = {"system": "\n".join(system) or None, "messages": messages, "tools": tools}
    rest = {key: value for key, value in payload.items() if key not in given}
    return rest | {key: value for key, value in given.items() if value is not None}


def _texts(content: Any, where: str) -> list[str]:
    """The texts of a system prompt."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    found = [_text(block, f"{where}[{index}]") for index, block in enumerate(blocks)]
    return [text for text in found if text and not text.startswith(_BILLING)]


def _text(block: Any, where: str) -> str:
    text = block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None
    if not isinstance(text, str):
        raise errors.bad_request(f"{where}: got no text, want a block of type text; correct it")
    return text


def _message(message: Any, where: str) -> list[Payload]:
    if not isinstance(message, dict):
        raise errors.bad_request(f"{where}: got {type(message).__name__}, want an object with role and content; correct it")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ("user", "assistant", "system"):
        raise errors.bad_request(f"{where}.role: got {errors.shown(role)}, want user or assistant; correct it")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return [{"role": role, "content": content or ""}]
    blocks = _blocks(content, f"{where}.content")
    results = [block for block in blocks if block["type"] == "tool_result"]
    rest = [block for block in blocks if block["type"] != "tool_result"]
    parts = [results, rest] if results and rest else [blocks]
    return [{"role": role, "content": _joined(part)} for part in parts]


def _joined(blocks: list[Payload]) -> str | list[Payload]:
    """One text, or blocks of which no two texts follow each other."""
    kept: list[Payload] = []
    for block in blocks:
        if kept and block["type"] == kept[-1]["type"] == "text":
            kept[-1] = {"type": "text", "text": f"{kept[-1]['text']}\n{block['text']}"}
        else:
            kept.append(block)
    if not kept:
        return ""
    return kept[0]["text"] if len(kept) == 1 and kept[0]["type"] == "text" else kept


def _blocks(content: Any, where: str) -> list[Payload]:
    if not isinstance(content, list):
        raise errors.bad_request(f"{where}: got {type(content).__name__}, want text or a list of blocks; correct it")
    return [each for index, block in enumerate(content) for each in _block(block, f"{where}[{index}]")]


def _block(block: Any, where: str) -> list[Payload]:
    match block:
        case {"type": "redacted_thinking" | "tool_reference"} | {"type": "thinking", "thinking": ""}:
            return []
        case {"type": "text"}:
            kept: Payload = {"text": _text(block, where)}
        case {"type": "image" | "document"}:
            kept = _source(block, f"{where}.source")
        case {"type": "tool_use", "id": str(call), "name": str(name)}:
            kept = {"id": call, "name": name, "input": as_object(block.get("input"))}
        case {"type": "tool_result", "tool_use_id": str(call)}:
            inner = block.get("content")
            kept = {"tool_use_id": call, "content": inner if isinstance(inner, str) else _joined(_blocks(inner or [], f"{where}.content"))}
        case {"type": "thinking", "thinking": str(thought)}:
            kept = {"thinking": thought}
        case _:
            got = errors.shown(block.get("type") if isinstance(block, dict) else block)
            want = "text, image, tool_use with id and name, tool_result with tool_use_id, or thinking"
            raise errors.bad_request(f"{where}: got {got}, want {want}; correct it")
    return [{"type": block["type"], **kept}]


def _source(block: Any, where: str) -> Payload:
    """Of an image, or the text of a document."""
    match block["type"], block.get("source"):
        case "image", {"type": "base64", "data": str(data), **more}:
            return {"source": {"type": "base64", "media_type": str(more.get("media_type", "image/png")), "data": data}}
        case "document", {"type": "text", "data": str(data)}:
            return {"type": "text", "text": data}
        case kind, _:
            want = "base64 with data; send the image itself" if kind == "image" else "text with data; send what the document says"
            raise errors.bad_request(f"{where}: got {kind} that is not within the request, or no text, want {want}")


def _tools(tools: Any) -> list[Payload] | None:
    if not tools:
        return None
    kept: list[Payload] = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise errors.bad_request(f"tools[{index}]: got no name, want a tool with a name and an input_schema; correct it", "tools")
        if tool.get("type") not in (None, "custom"):
            want = "custom, or no type; nothing here runs tools for a client: send a tool of your own, with an input_schema"
            raise errors.bad_request(f"tools[{index}].type: got {errors.shown(tool['type'])}, want {want}", "tools")
        schema = whole_schema(tool.get("input_schema"), f"tools[{index}].input_schema")
        own = {"name": tool["name"], "description": tool.get("description"), "input_schema": schema}
        kept.append({key: value for key, value in own.items() if value is not None})
    return kept
