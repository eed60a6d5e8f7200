"""Conversations of OpenAI's Responses, in the form that every engine takes. What history.py is for those of chat.

| what comes                                  | what goes on                      | why                                       |
| ------------------------------------------- | --------------------------------- | ----------------------------------------- |
| messages of a system or developer, first    | more instructions                 | strict templates know one of them         |
| later ones                                  | messages of the user              | the same; the prefix stays warm           |
| a message without a type, or as one text    | one with a type, and parts        | llama.cpp refuses the short form          |
| arguments that are cut, empty, or no object | {}                                | Ollama: 400                               |
| several parts of text                       | one, a line for each              | engines join them without a space         |
| a result in parts                           | one text; then an image of a user | llama.cpp takes no image there            |
| a call of a tool that takes plain text      | a call with that text as `input`  | no server knows such tools                |
| thoughts, as text or as a summary           | what the server reads of the two  | Ollama reads one field, llama.cpp another |
| thoughts that only their maker can read     | nothing                           | they are of another service               |
| a tool's schema without properties          | one with none of them             | Ollama says null, its engine: 400         |
| more tools, as an item                      | among the tools                   | no server looks for them there            |
| what a hosted tool did                      | nothing                           | the next message has what came of it      |
| a file, an image by address, a reference    | 400                               | nothing is fetched or kept for a client   |

Of the tools, functions go on, and Codex's groups of them to Ollama. Those that Codex sends by itself, and that no server here has, are
dropped and counted as `tools.<type>`; one that only a hosted service could run is 400.
"""

import json
from typing import Any

from api_server import errors
from api_server.history import as_object
from api_server.models import Engine
from api_server.paths import Payload
from api_server.tools import only, whole_schema

_SYSTEM = ("system", "developer")
_TEXTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")
_RECORDS = ("web_search_call", "image_generation_call", "local_shell_call", "tool_search_call", "tool_search_output")
"""Items about hosted tools that a client may send back."""
DROPPED_TOOLS = ("custom", "image_generation", "local_shell", "tool_search", "web_search", "web_search_preview")
_TOOL_FIELDS = ("type", "name", "description", "strict")


def normalised(payload: Payload, engine: Engine) -> tuple[Payload, list[str]]:
    """The request as a server takes it, and the names of the tools that it lost. Raises ApiError 400 that names the place of what has no
    meaning."""
    system, items, more = [payload.get("instructions") or ""], payload["input"], list(payload.get("tools") or [])
    if not isinstance(items, str):
        kept: list[Payload] = []
        for index, item in enumerate(items):
            if isinstance(item, dict) and item.get("type") == "additional_tools" and isinstance(item.get("tools"), list):
                more += item["tools"]
                continue
            for each in _item(item, f"input[{index}]", engine):
                if each.get("role") not in _SYSTEM:
                    kept.append(each)
                elif kept:
                    kept.append(each | {"role": "user"})
                else:
                    system.append("\n".join(part.get("text", "") for part in each["content"]))
        items = kept
    tools, dropped = _tools(more, engine)
    given: Payload = {"input": items, "instructions": "\n\n".join(filter(None, system)) or None, "tools": tools or None}
    if isinstance(choice := payload.get("tool_choice"), dict):
        given |= _choice(choice, tools)
    given |= {"text": payload.get("text") or None} | _form(payload.get("text") or {}, engine)
    return {key: value for key, value in (payload | given).items() if value is not None}, dropped


def _item(item: Any, where: str, engine: Engine) -> list[Payload]:
    match item:
        case {"role": "user" | "assistant" | "system" | "developer" as role} if (item.get("type") or "message") == "message":
            kind = "output_text" if role == "assistant" else "input_text"
            return [{"type": "message", "role": role, "content": _parts(item.get("content"), f"{where}.content", kind)}]
        case {"type": "function_call", "call_id": str(call), "name": str(name)}:
            return [_call(call, name, as_object(item.get("arguments")))]
        case {"type": "custom_tool_call", "call_id": str(call), "name": str(name), "input": str(text)}:
            return [_call(call, name, {"input": text})]
        case {"type": "function_call_output" | "custom_tool_call_output", "call_id": str(call)}:
            parts = _parts(item.get("output"), f"{where}.output", "input_text")
            images = [part for part in parts if part["type"] == "input_image"]
            text = "\n".join(part["text"] for part in parts if "text" in part)
            result: Payload = {"type": "function_call_output", "call_id": call, "output": text}
            return [result, {"type": "message", "role": "user", "content": images}] if images else [result]
        case {"type": "reasoning"}:
            return _thoughts(item, engine)
        case {"type": str(kind)} if kind in _RECORDS:
            return []
        case _:
            got = errors.shown(item.get("type") if isinstance(item, dict) else item)
            want = "a message of user, assistant or developer, a function_call, a function_call_output or reasoning, each whole"
            raise errors.bad_request(f"{where}: got {got}, want {want}; no answer is kept here, so send what it was", "input")


def _call(call: str, name: str, arguments: Payload) -> Payload:
    return {"type": "function_call", "call_id": call, "name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}


def _parts(content: Any, where: str, kind: str) -> list[Payload]:
    """Texts as one of this kind, and images."""
    if content is None or isinstance(content, str):
        return [{"type": kind, "text": content or ""}]
    if not isinstance(content, list):
        raise errors.bad_request(f"{where}: got {type(content).__name__}, want text or a list of parts; correct it")
    kept: list[Payload] = []
    for index, part in enumerate(content):
        each = _part(part, f"{where}[{index}]", kind)
        if kept and "text" in each and "text" in kept[-1]:
            kept[-1] = {"type": kind, "text": f"{kept[-1]['text']}\n{each['text']}"}
        else:
            kept.append(each)
    return kept


def _part(part: Any, where: str, kind: str) -> Payload:
    match part:
        case {"type": "input_image", "image_url": str(url)} if url.startswith("data:"):
            return {"type": "input_image", "image_url": url, "detail": "auto"}
        case {"type": "input_image"}:
            raise errors.bad_request(f"{where}.image_url: got an image by address, want data:image/png;base64,…; send the image itself")
        case {"type": str(given)} if given in _TEXTS and isinstance(text := part.get("text", part.get("refusal")), str):
            return {"type": kind, "text": text}
        case _:
            got = errors.shown(part.get("type") if isinstance(part, dict) else part)
            raise errors.bad_request(f"{where}: got {got}, want {kind} with text, or input_image; correct it")


def _thoughts(item: Payload, engine: Engine) -> list[Payload]:
    """Where the server reads them: Ollama as if they were hidden, llama.cpp as content."""
    parts = item.get("content") or item.get("summary") or []
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    thought = "\n".join(text for text in texts if isinstance(text, str))
    if not thought:
        return []
    if engine == "ollama":
        return [{"type": "reasoning", "summary": [], "encrypted_content": thought}]
    return [{"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": thought}]}]


def _tools(tools: list[Any], engine: Engine) -> tuple[list[Payload], list[str]]:
    kept: list[Payload] = []
    dropped: list[str] = []
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "function" and isinstance(tool.get("name"), str):
            own = {key: tool[key] for key in _TOOL_FIELDS if key in tool}
            kept.append(own | {"parameters": whole_schema(tool.get("parameters"), f"tools[{index}].parameters")})
        elif kind == "namespace" and engine == "ollama" and isinstance(tool.get("tools"), list):
            # A group within a group has no name that Ollama would say.
            inner, lost = _tools(tool["tools"], "openai")
            kept.append({"type": "namespace", "name": str(tool.get("name", "")), "tools": inner})
            dropped += lost
        elif kind == "namespace" or kind in DROPPED_TOOLS:
            dropped.append(f"tools.{kind}")
        else:
            want = "function, with a name; nothing here runs tools for a client: send a function of your own"
            raise errors.bad_request(f"tools[{index}].type: got {errors.shown(kind)}, want {want}", "tools")
    return kept, dropped


def _choice(choice: Payload, tools: list[Payload]) -> Payload:
    """A function by name, as llama.cpp can be held to it: it gets that one alone, and must call."""
    if choice.get("type") != "function":
        want = "auto, none, required, or a function by name; send only the tools that may be called"
        raise errors.bad_request(f"tool_choice: got {errors.shown(choice)}, want {want}", "tool_choice")
    return {"tools": only(tools, choice.get("name"), lambda tool: tool["name"]), "tool_choice": "required"}


def _form(text: Payload, engine: Engine) -> Payload:
    """The form of the answer where the server reads it. Ollama knows schemas alone; llama.cpp reads the field of chat."""
    match text.get("format"):
        case {"type": "json_object"} as form:
            schema: Payload = {"type": "json_schema", "name": "object", "schema": {"type": "object"}}
            return {"text": {"format": schema}} if engine == "ollama" else {"response_format": form}
        case {"type": "json_schema", "schema": dict()} as form if engine == "openai":
            return {"response_format": {"type": "json_schema", "json_schema": {key: form[key] for key in form if key != "type"}}}
        case _:
            return {}
