"""What agents replay, in the form that every engine takes. This table is the whole of it.

| what comes                                    | what goes on                                | why                                        |
| --------------------------------------------- | ------------------------------------------- | ------------------------------------------ |
| role `developer`                              | role `system`                               | Go templates know `system` alone           |
| `content: null`, or none                      | empty text                                  | Ollama: 400 invalid message content type   |
| content as parts of text                      | one text, a line for each                   | Ollama: results in parts lose id and name  |
| an image within a tool's result               | a message of the user after it              | the same                                   |
| several system messages at the start          | one                                         | strict templates raise                     |
| a later system message                        | text of the user in its place               | the same; the first one stays, as a prefix |
|                                               |                                             | that the server still holds                |
| tool arguments empty, cut, or no JSON object  | {}                                          | Ollama: 400; llama.cpp: 500, retried       |
| tool arguments as an object                   | JSON text; the object in Ollama's own API   | each API knows one of the two              |
| `reasoning_content`, `reasoning`, `thinking`  | the name that the server reads              | each server knows one of the three         |
| a part of thoughts within the content         | nothing                                     | no server takes one                        |
| a field that is not in `_FIELDS`              | nothing                                     | Go reads names without regard to case      |
| an image by address                           | 400                                         | the fleet fetches nothing for a client     |

Reports: OpenHands/OpenHands 13949, lastmile-ai/mcp-agent 25, QwenLM/qwen-code 3421, ggml-org/llama.cpp 27367, ollama/ollama 18305, 6753.
llama.cpp and vLLM join parts of text by lines too.
"""

import json
from typing import Any, Literal

from api_server import errors
from api_server.paths import Payload

_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "tool_name", "images"})
"""Fields of a message that go on under their own name."""
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_THOUGHT_PARTS = ("thinking", "reasoning", "redacted_thinking")
_MEDIA_PARTS = ("image_url", "input_audio")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
Form = Literal["reasoning", "reasoning_content", "thinking"]
"""Where a server reads earlier thoughts: Ollama's OpenAI layer, llama.cpp, Ollama's own API. The last has arguments as objects too."""


def normalised(messages: list[Any], form: Form) -> list[Payload]:
    """The messages as a server takes them. Raises ApiError 400 that names the message, on what has no meaning."""
    whole = [each for index, message in enumerate(messages) for each in _message(message, f"messages[{index}]", form)]
    return _systems_first(whole)


def _message(message: Any, where: str, form: Form) -> list[Payload]:
    if not isinstance(message, dict):
        raise errors.bad_request(f"{where}: got {type(message).__name__}, want an object with role and content; correct it")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise errors.bad_request(f"{where}.role: got {errors.shown(role)}, want system, user, assistant or tool; correct it")
    kept: Payload = {key: message[key] for key in message if key in _FIELDS and message[key] is not None}
    kept["role"] = "system" if role == "developer" else role
    kept["content"] = _content(message.get("content"), where)
    for key in _THOUGHTS:
        if isinstance(thought := message.get(key), str) and thought:
            kept[form] = thought
            break
    if "tool_calls" in kept:
        kept["tool_calls"] = _calls(kept["tool_calls"], where, form)
    if role == "tool" and isinstance(kept["content"], list):
        media = [part for part in kept["content"] if part["type"] != "text"]
        kept["content"] = "\n".join(part["text"] for part in kept["content"] if part["type"] == "text")
        return [kept, {"role": "user", "content": media}]
    return [kept]


def _content(content: Any, where: str) -> str | list[Payload]:
    """One text, or parts where one of them is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise errors.bad_request(f"{where}.content: got {type(content).__name__}, want text or a list of parts; correct it")
    parts = [each for index, part in enumerate(content) for each in _part(part, f"{where}.content[{index}]")]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> list[Payload]:
    if isinstance(part, str):
        return [{"type": "text", "text": part}]
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        text = part.get("text", part.get("refusal"))
        if text is not None and not isinstance(text, str):
            raise errors.bad_request(f"{where}.text: got {type(text).__name__}, want text; correct it")
        return [{"type": "text", "text": text or ""}]
    if kind in _THOUGHT_PARTS:
        return []
    if kind in _MEDIA_PARTS:
        return [{"type": kind, kind: _media(part.get(kind), kind, f"{where}.{kind}")}]
    raise errors.bad_request(f"{where}.type: got {errors.shown(kind)}, want text, image_url or input_audio; correct it")


def _media(source: Any, kind: str, where: str) -> Payload:
    """An image's or a sound's data, by the fields that servers know."""
    fields = ("url",) if kind == "image_url" else ("data", "format")
    given = {"url": source} if isinstance(source, str) and kind == "image_url" else source
    if not isinstance(given, dict) or not isinstance(given.get(fields[0]), str):
        raise errors.bad_request(f"{where}: got no {fields[0]}, want one, as data:image/png;base64,… for an image; correct it")
    if kind == "image_url" and not given["url"].startswith("data:"):
        raise errors.bad_request(f"{where}.url: got an image by address, want data:image/png;base64,…; send the image itself")
    return {key: given[key] for key in fields if isinstance(given.get(key), str)}


def _calls(calls: Any, where: str, form: Form) -> list[Payload]:
    if not isinstance(calls, list):
        raise errors.bad_request(f"{where}.tool_calls: got {type(calls).__name__}, want a list; correct it")
    kept: list[Payload] = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise errors.bad_request(f"{where}.tool_calls[{index}]: got no function with a name, want one; correct it")
        arguments = as_object(function.get("arguments"))
        text: Any = arguments if form == "thinking" else json.dumps(arguments, ensure_ascii=False)
        entry: Payload = {"type": "function", "function": {"name": function["name"], "arguments": text}}
        if isinstance(call.get("id"), str):
            entry["id"] = call["id"]
        kept.append(entry)
    return kept


def as_object(arguments: Any) -> Payload:
    """A call's arguments; nothing of what is cut, empty, or no object."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return {}
    return arguments if isinstance(arguments, dict) else {}


def _systems_first(messages: list[Payload]) -> list[Payload]:
    """One system message at the start; the text of every later one belongs to the user's message before it, or is one itself."""
    ordered: list[Payload] = []
    for message in messages:
        previous = ordered[-1] if ordered else None
        if message["role"] != "system" or previous is None:
            ordered.append(message)
        elif previous["role"] in ("system", "user") and _is_text(previous) and _is_text(message):
            ordered[-1] = previous | {"content": f"{previous['content']}\n\n{message['content']}"}
        else:
            ordered.append(message | {"role": "user"})
    return ordered


def _is_text(message: Payload) -> bool:
    return isinstance(message["content"], str) and "images" not in message
